"""Layers, inputs and gradients of a GPU case, and everybody who computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ostinato.bench.gpu_cases import SEED, GpuCase
from ostinato.errors import InputError
from ostinato.layers import gated
from ostinato.layers.dropout import set_mask_key
from ostinato.layers.gated import GatedStack
from ostinato.types import Output, State

OURS, CUDNN, PLAIN, COMPILED = "ostinato", "cuDNN", "plain", "compiled loop"
_LAYERS: dict[str, type[GatedStack]] = {"rnn": gated.RNN, "lstm": gated.LSTM, "gru": gated.GRU}
_TORCH: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
DTYPES = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32
}  # fmt: skip


@contextmanager
def precision_of(case: GpuCase) -> Iterator[None]:
    """PyTorch's switches for products of float32, for everybody alike."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = case.precision == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@dataclass
class Problem:
    """A layer of ours with what it runs on, on one device in one dtype.

    Attributes:
        case: what was asked for.
        layer: in training mode.
        x: (B, T, D), with a gradient.
        state: to start from, with gradients; None for zeros.
        lengths: (B,) on the CPU, as they come from a reader of files; or None.
        resets: (B, T) or None.
        d_y: (B, T, ·), the gradient of y.
    """

    case: GpuCase
    layer: GatedStack
    x: Tensor
    state: State | None
    lengths: Tensor | None
    resets: Tensor | None
    d_y: Tensor

    def run(self) -> Output:
        """The layer's answer; the same random masks each time."""
        if self.layer.options.has_cell_masks():
            set_mask_key(self.layer, SEED, 0)
        return self.layer(self.x, self.state, lengths=self.lengths, resets=self.resets)

    @property
    def wanted(self) -> list[Tensor]:
        """What gradients are taken of."""
        state = {} if self.state is None else _leaves(self.state)
        return [self.x, *self.layer.parameters(), *state.values()]

    def results(self) -> dict[str, Tensor]:
        """y, the final state and all gradients, by name."""
        output = self.run()
        leaves = _leaves(output.state)
        outputs = [output.y, *leaves.values()]
        # The final state weighs as much as one step.
        weights = [self.d_y, *(torch.ones_like(leaf) * 0.5 for leaf in outputs[1:])]
        names = ["x", *(name for name, _ in self.layer.named_parameters())]
        names += [f"state.{name}" for name in ([] if self.state is None else _leaves(self.state))]
        found = {"y": output.y.detach()} | {name: leaf.detach() for name, leaf in leaves.items()}
        gradients = torch.autograd.grad(outputs, self.wanted, weights)
        return found | {f"d_{name}": value for name, value in zip(names, gradients, strict=True)}

    def forward(self) -> Tensor:
        """y without a graph."""
        with torch.no_grad():
            return self.run().y

    def training(self) -> tuple[Tensor, ...]:
        """All gradients from that of y."""
        return torch.autograd.grad(self.run().y, self.wanted, self.d_y)

    def in_float64(self) -> Problem:
        """The same values by PyTorch's operators, step by step, in float64."""
        double = _layer_of(self.case, "torch steps", torch.float64, self.x.device)
        double.load_state_dict({name: value.double() for name, value in self.layer.state_dict().items()})
        state = self.state
        if state is not None:
            state = State({name: _leaf(leaf.detach().double()) for name, leaf in _leaves(state).items()})
        return Problem(
            self.case, double, _leaf(self.x.detach().double()), state, self.lengths, self.resets,
            self.d_y.double(),
        )  # fmt: skip


def _leaves(state: State) -> dict[str, Tensor]:
    """The cell's own leaves, without those that random masks need."""
    return {name: leaf for name, leaf in state.items() if isinstance(leaf, Tensor) and name in ("h", "c")}


def draw(case: GpuCase, device: torch.device, backend: str = "auto") -> Problem:
    """The problem of a case, the same for the same case.

    Raises:
        InputError: the backend cannot take it.
    """
    dtype = DTYPES[case.precision]
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    torch.manual_seed(SEED)
    layer = _layer_of(case, backend, torch.float32, torch.device("cpu")).to(device, dtype)
    B, T = case.B, case.T
    x, d_y = normal(B, T, case.width), normal(B, T, layer.output_size)
    state = resets = lengths = None
    if case.has_resets:
        shapes = {name: leaf.shape for name, leaf in _leaves(layer.initial_state(B, training=False)).items()}
        state = State({name: _leaf(normal(*shape) * 0.5) for name, shape in shapes.items()})
        resets = (torch.rand(B, T, generator=generator) < 0.1).to(device)
    if case.is_ragged:
        lengths = torch.randint(1, T + 1, (B,), generator=generator)
    return Problem(case, layer.train(), _leaf(x), state, lengths, resets, d_y)


def _layer_of(case: GpuCase, backend: str, dtype: torch.dtype, device: torch.device) -> GatedStack:
    options = dict(case.options)
    if backend == "torch steps" and options.get("recompute"):
        options.pop("recompute")
    layer = _LAYERS[case.cell](
        case.width, case.H, case.layers, bidirectional=case.is_bidirectional, backend="auto", dtype=dtype,
        device=device, **options,
    )  # fmt: skip
    layer.options = replace(layer.options, backend=backend)
    return layer


def _leaf(value: Tensor) -> Tensor:
    return value.contiguous().requires_grad_()


def draw_ours(case: GpuCase, device: torch.device) -> Problem:
    """Ours by the Triton kernels, and where they cannot take it by what `auto` takes."""
    if device.type != "cuda":
        return draw(case, device)
    problem = draw(case, device, "triton")
    try:
        problem.layer.explain(problem.x)
    except InputError:
        return draw(case, device)
    return problem


# Peers ---------------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """Somebody else's answer: y without a graph, and gradients from that of y."""

    forward: Callable[[], Any]
    training: Callable[[], Any]
    y: Callable[[], Tensor]


def cudnn(problem: Problem) -> Peer | None:
    """`torch.nn` with the same weights, time-major, packed where rows differ; None where it has none such."""
    case = problem.case
    if case.options or case.has_resets:
        return None
    x = _leaf(problem.x.detach().transpose(0, 1))
    d_y = problem.d_y.transpose(0, 1).contiguous()
    layer = _TORCH[case.cell](
        case.width, case.H, case.layers, bidirectional=case.is_bidirectional, device=x.device, dtype=x.dtype
    )
    layer.load_state_dict(problem.layer.state_dict())
    wanted = [x, *layer.parameters()]

    def run() -> Tensor:
        if problem.lengths is None:
            return layer(x)[0]
        y, _ = layer(pack_padded_sequence(x, problem.lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=case.T)[0]

    def forward() -> Tensor:
        with torch.no_grad():
            return run()

    return Peer(forward, lambda: torch.autograd.grad(run(), wanted, d_y), lambda: forward().transpose(0, 1))


def compiled_loop(problem: Problem) -> Peer:
    """A loop over a step under torch.compile, the input product outside: what a user writes by hand."""
    parameters = {name: _leaf(value.detach()) for name, value in problem.layer.named_parameters()}
    x = _leaf(problem.x.detach().transpose(0, 1))
    d_y = problem.d_y.transpose(0, 1).contiguous()
    step = torch.compile({"lstm": _lstm_step, "gru": _gru_step}[problem.case.cell])
    wanted = [x, *parameters.values()]
    w_hh, b_hh = parameters["weight_hh_l0"], parameters["bias_hh_l0"]

    def run() -> Tensor:
        h = c = x.new_zeros(x.shape[1], problem.case.H)
        ys = []
        for a in F.linear(x, parameters["weight_ih_l0"], parameters["bias_ih_l0"]).unbind(0):
            h, c = step(a, h, c, w_hh, b_hh)
            ys.append(h)
        return torch.stack(ys)

    def forward() -> Tensor:
        with torch.no_grad():
            return run()

    return Peer(forward, lambda: torch.autograd.grad(run(), wanted, d_y), lambda: forward().transpose(0, 1))


def _lstm_step(a: Tensor, h: Tensor, c: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (a + F.linear(h, w, b)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(a: Tensor, h: Tensor, c: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    (a_r, a_z, a_n), (u_r, u_z, u_n) = a.chunk(3, 1), F.linear(h, w, b).chunk(3, 1)
    n = torch.tanh(a_n + torch.sigmoid(a_r + u_r) * u_n)
    return torch.lerp(n, h, torch.sigmoid(a_z + u_z)), c


def plain(problem: Problem) -> Problem | None:
    """Ours without its options; None where it has none."""
    if not problem.case.options:
        return None
    return draw_ours(replace(problem.case, options=()), problem.x.device)
