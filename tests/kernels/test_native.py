"""Law 5 for the native kernels: outputs and all gradients equal the plain steps', at every size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ostinato.kernels import native, operators, recurrence, reference
from ostinato.kernels.recurrence import Arguments
from ostinato.kernels.reference import CellOptions
from ostinato.kernels.task import Task

_native = pytest.importorskip("ostinato._native", reason="the native kernels are not built")

EVERYTHING = {"norm": True, "peephole": True, "coupled_gates": True, "zoneout": {"h": 0.3, "c": 0.2}}
# Cell, and what changes its equations; `projection` stands for about half of H.
KINDS = {
    "rnn": ("rnn", {}),
    "rnn-relu": ("rnn", {"nonlinearity": "relu"}),
    "rnn-norm": ("rnn", {"norm": True}),
    "rnn-zoneout-random": ("rnn", {"zoneout": {"h": 0.3}, "training": True}),
    "lstm": ("lstm", {}),
    "lstm-norm": ("lstm", {"norm": True}),
    "lstm-peephole": ("lstm", {"peephole": True}),
    "lstm-coupled": ("lstm", {"coupled_gates": True}),
    "lstm-coupled-peephole": ("lstm", {"coupled_gates": True, "peephole": True}),
    "lstm-projection": ("lstm", {"projection": 1}),
    "lstm-projection-norm-peephole": ("lstm", {"projection": 1, "norm": True, "peephole": True}),
    "lstm-zoneout": ("lstm", {"zoneout": {"h": 0.3, "c": 0.2}}),
    "lstm-zoneout-random": ("lstm", {"zoneout": {"h": 0.3, "c": 0.2}, "training": True}),
    "lstm-everything": ("lstm", {**EVERYTHING, "projection": 1}),
    "lstm-everything-random": ("lstm", {**EVERYTHING, "projection": 1, "training": True}),
    "gru": ("gru", {}),
    "gru-before": ("gru", {"reset_after": False}),
    "gru-norm": ("gru", {"norm": True}),
    "gru-norm-before": ("gru", {"norm": True, "reset_after": False}),
    "gru-zoneout": ("gru", {"zoneout": {"h": 0.3}}),
    "gru-before-zoneout-random": ("gru", {"reset_after": False, "zoneout": {"h": 0.3}, "training": True}),
}  # fmt: skip
CALLS = (
    "dense",
    "lengths",
    "holes",
    "resets",
    "holes resets",
    "empty resets",
    "dropout",
    "dropout-steps lengths",
)
BOTH = (torch.float32, torch.float64)
SIZES = [*range(1, 41), *(n + d for n in (48, 64, 96, 128, 256, 512) for d in (-1, 0, 1)), 80, 200, 384, 520]


def make(
    kind: str, words: str, *, B: int, T: int, D: int, H: int, keeps: str = "gates", bias: bool = True
) -> tuple[Task, Arguments]:
    """A task, and arguments for it in float64; `words` are of CALLS, `reverse` and `cells`."""
    cell, changes = KINDS[kind]
    if "projection" in changes:
        changes = {**changes, "projection": max(1, (H + 1) // 2)}
        H += H == 1  # a projection is narrower than H
    options, spec, has = CellOptions(**changes), reference.CELLS[cell], set(words.split())
    P = options.projection or H

    def tensors(shapes, scale):
        return [torch.randn(shape, dtype=torch.float64) * scale for shape in shapes]

    state = [(B, *size) for size in spec.state_sizes(H, options).values()]
    mask = resets = None
    if "lengths" in has:
        mask = torch.arange(T) < torch.randint(0, T + 1, (B, 1))
    if "holes" in has:
        mask = torch.rand(B, T) < 0.6
    if "empty" in has:
        mask = torch.zeros(B, T, dtype=torch.bool)
    if "resets" in has:
        resets = torch.rand(B, T) < 0.4
    noise: list[Tensor | None] = [None, None, None]
    if "dropout" in has or "dropout-steps" in has:
        noise[0] = (torch.rand(1 if "dropout" in has else T, B, P, dtype=torch.float64) < 0.7) / 0.7
    if options.training:
        noise[1] = torch.rand(T, B, P) < 0.3 if "h" in options.zoneout else None
        noise[2] = torch.rand(T, B, H) < 0.3 if "c" in options.zoneout else None
    shapes = spec.parameter_shapes(D, H, options, bias).values()
    weights = tensors(shapes, 1 / max(D, H) ** 0.5)
    initial = tensors(state, 0.7) if resets is not None else []
    given = Arguments(tensors([(B, T, D)], 1)[0], tensors(state, 0.7), initial, weights, mask, resets, noise)
    return Task(cell, options, "reverse" in has, "cells" in has and cell == "lstm", keeps), given


def to(given: Arguments, dtype: torch.dtype, form=lambda tensor: tensor) -> Arguments:
    """The same as leaves of another dtype, each passed through `form` beforehand."""
    tensors = [form(tensor.to(dtype)).detach().requires_grad_() for tensor in recurrence.tensors_of(given)]
    noise = [one.to(dtype) if one is not None and one.is_floating_point() else one for one in given.noise]
    return recurrence.with_tensors(given, tensors)._replace(noise=noise)


def upstream(outputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in outputs]


def derivatives(outputs: list[Tensor], given: Arguments, chosen=slice(None)) -> list[Tensor]:
    """Gradients of everything, from gradients of the chosen outputs."""
    grads = [grad.to(one.dtype) for grad, one in zip(upstream(outputs), outputs, strict=True)]
    return list(
        torch.autograd.grad(
            outputs[chosen], recurrence.tensors_of(given), grads[chosen],
            allow_unused=True, materialize_grads=True,
        )
    )  # fmt: skip


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error over largest value; infinite where either is not finite."""
    errors = [0.0]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape, f"shape {tuple(one.shape)}, expected {tuple(other.shape)}"
        if one.numel():
            value = ((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-2)).item()
            errors.append(float("inf") if math.isnan(value) else value)
    return max(errors)


def compare(task: Task, given: Arguments, tolerance, what: str, dtypes=BOTH) -> float:
    """The worst error in float32."""
    if task.options.norm and recurrence.hidden_size(task, given) < 4:
        # Two normalised numbers are 1 and -1 whatever they were; how fast they get there float32 cannot say.
        dtypes = (torch.float64,)
    exact = to(given, torch.float64)
    expected = recurrence.run_steps(task, exact)
    d_expected = derivatives(expected, exact)
    worst = 0.0
    for dtype in dtypes:
        ours = to(given, dtype)
        outputs = operators.run(task, ours)
        found = error(outputs, expected)
        assert found <= tolerance[dtype], f"{what}, {dtype}: outputs are off by {found:.2g}"
        d_found = error(derivatives(outputs, ours), d_expected)
        assert d_found <= tolerance[dtype], f"{what}, {dtype}: gradients are off by {d_found:.2g}"
        worst = max(worst, found, d_found) if dtype == torch.float32 else worst
    return worst


@pytest.fixture(params=_native.isas())
def isa(request) -> Iterator[str]:
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_on_every_kind_of_call(kind, isa, tolerance):
    for index, call in enumerate(CALLS):
        for turn, (B, T, D, H) in enumerate(((3, 5, 4, 7), (9, 3, 17, 18))):
            words = f"{call}{' reverse' * ((index + turn) % 2)}{' cells' * (index % 3 > 0)}"
            compare(*make(kind, words, B=B, T=T, D=D, H=H), tolerance, f"{kind} {words} H={H}")


@pytest.mark.parametrize("kind", ["rnn", "lstm-everything", "gru-before"])
def test_one_step_one_row_one_unit(kind, isa, tolerance):
    for B, T, D, H in ((1, 1, 1, 1), (1, 4, 1, 5), (5, 1, 3, 1), (2, 3, 1, 1)):
        for words in ("dense", "resets reverse", "lengths cells"):
            compare(*make(kind, words, B=B, T=T, D=D, H=H), tolerance, f"{kind} {words} {(B, T, D, H)}")


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("keeps", ["gates", "outputs"])
def test_every_size(kind, keeps, isa, tolerance):
    """Each size once, with B, D, options and calls taking turns."""
    kinds = [name for name in KINDS if name.startswith(kind)] if keeps == "gates" else [kind]
    sizes = SIZES if isa == _native.isas()[-1] and keeps == "gates" else [n for n in SIZES if n <= 65]
    for index, H in enumerate(sizes):
        words = f"{CALLS[index % len(CALLS)]}{' reverse' * (index // 2 % 2)}"
        name = kinds[index % len(kinds)] if H <= 65 else kind
        D = H if index % 2 else (H * 7) % 23 + 1
        task, given = make(name, words, B=1 + index % 7, T=3, D=D, H=H, keeps=keeps, bias=index % 5 > 0)
        dtypes = (torch.float32, torch.float64) if H <= 65 else (torch.float32,)
        compare(task, given, tolerance, f"{name} {words} B={1 + index % 7} D={D} H={H}", dtypes)


@pytest.mark.parametrize("kind", ["rnn-relu", "lstm", "gru", "lstm-everything-random"])
def test_the_memory_mode_gives_the_same_bits(kind, isa):
    if "everything" in kind:
        task, given = make(kind, "dense", B=1, T=2, D=2, H=3, keeps="outputs")
        assert "without options" in (native.obstacle(task, given.x) or "")
        return
    for index, call in enumerate(CALLS):
        words = f"{call} cells{' reverse' * (index % 2)}"
        for dtype in (torch.float32, torch.float64):
            task, given = make(kind, words, B=70, T=9, D=6, H=21)
            found = []
            for keeps in ("gates", "outputs"):
                ours = to(given, dtype)
                outputs = operators.run(task._replace(keeps=keeps), ours)
                found.append([*outputs, *derivatives(outputs, ours)])
            _assert_equal(*found, f"{kind} {words}")


def _assert_equal(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        off = (one - other).abs().max().item() if one.numel() else 0.0
        assert torch.equal(one, other), f"{what}: tensor {index} differs by {off:.3g}"


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _inside(tensor: Tensor) -> Tensor:
    """A view into a larger tensor, off every alignment and surrounded by NaN."""
    wide = tensor.new_full([n + 3 for n in tensor.shape], float("nan"))
    view = wide[tuple(slice(1, n + 1) for n in tensor.shape)]
    return view.copy_(tensor)


def _unaligned(tensor: Tensor) -> Tensor:
    flat = tensor.new_full((tensor.numel() + 2,), float("nan"))
    flat[1:-1] = tensor.flatten()
    return flat[1:-1].view(tensor.shape)


def _expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize("form", [_transposed, _inside, _unaligned, _expanded])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "lstm-everything", "gru-before"])
def test_any_strides_will_do(kind, form, isa, tolerance):
    task, given = make(kind, "lengths resets cells", B=5, T=4, D=6, H=9)
    strided, plain = (to(given, torch.float64, one) for one in (form, lambda t: form(t).contiguous()))
    results = []
    for ours in (strided, plain):
        outputs = operators.run(task, ours)
        grads = [form(grad) for grad in upstream(outputs)]
        results.append([*outputs, *torch.autograd.grad(outputs, recurrence.tensors_of(ours), grads)])
    _assert_equal(*results, f"{kind} {form.__name__}")
    expected = recurrence.run_steps(task, plain)
    assert error(results[0][: len(expected)], expected) <= tolerance[torch.float64]


@pytest.mark.parametrize("kind", ["rnn", "lstm", "lstm-everything", "gru", "gru-norm-before"])
def test_some_outputs_and_some_inputs_only(kind, isa, tolerance):
    """Missing upstream gradients, frozen parameters, inputs that want none."""
    for words in ("dense cells", "lengths resets cells reverse"):
        task, given = make(kind, words, B=3, T=4, D=5, H=6)
        ours = to(given, torch.float64)
        expected, outputs = recurrence.run_steps(task, ours), operators.run(task, ours)
        for index in range(len(outputs)):
            chosen = slice(index, index + 1)
            found = derivatives(operators.run(task, ours), ours, chosen)
            off = error(found, derivatives(recurrence.run_steps(task, ours), ours, chosen))
            assert off <= tolerance[torch.float64], f"{kind} {words}, output {index} alone: off by {off:.2g}"
        everything = derivatives(expected, ours)
        for index, tensor in enumerate(recurrence.tensors_of(ours)):
            for other in recurrence.tensors_of(ours):
                other.requires_grad_(other is tensor)
            outputs = operators.run(task, ours)
            pairs = [(y, g) for y, g in zip(outputs, upstream(outputs), strict=True) if y.requires_grad]
            found = torch.autograd.grad([y for y, _ in pairs], [tensor], [g for _, g in pairs])
            off = error(list(found), [everything[index]])
            assert off <= tolerance[torch.float64], f"{kind} {words}, input {index} alone: off by {off:.2g}"


@pytest.mark.parametrize("kind", KINDS)
def test_first_derivatives_are_right(kind):
    task, given = make(kind, "holes resets cells", B=2, T=3, D=2, H=3)
    ours = to(given, torch.float64)
    names = recurrence.tensors_of(ours)

    def function(*tensors):
        return tuple(operators.run(task, recurrence.with_tensors(ours, tensors)))

    assert torch.autograd.gradcheck(function, tuple(names), fast_mode=True)
