"""The table that every law runs over: cell × option × backend × dtype × direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ostinato as ot
from ostinato.errors import InputError
from ostinato.kernels import ops, program

try:
    from ostinato import _native
except ImportError:
    _HAS_FMA = False
else:
    _HAS_FMA = _native.isa_facts()[1]

D, H = 5, 7


class DecayCell(ot.Cell):
    """A user's cell: leaky integration with unequal leaves and with time between steps."""

    takes_dt = True

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,), "seen": (2, 3)}
        self.weight = nn.Parameter(torch.randn(hidden_size, input_size + hidden_size) * 0.4)
        self.rate = nn.Parameter(torch.rand(hidden_size))

    def step(self, x_t: Tensor, state: ot.State, *dt: Tensor) -> tuple[Tensor, ot.State]:
        h = state.h * torch.exp(-self.rate.abs() * dt[0].unsqueeze(1))
        # A product by rows, so that this cell keeps the bitwise laws as the built-in ones do.
        h = torch.tanh((torch.cat([x_t, h], 1).unsqueeze(1) * self.weight).sum(2)) + 0.5 * h
        seen = state.seen + h[:, :6].unflatten(1, (2, 3))
        return h * seen.sum((1, 2)).unsqueeze(1).tanh(), ot.State(h=h, seen=seen)


class PlainCell(ot.Cell):
    """A user's cell without dt and with a matrix product."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.weight = nn.Parameter(torch.randn(hidden_size, input_size + hidden_size) * 0.4)

    def step(self, x_t: Tensor, state: ot.State, *dt: Tensor) -> tuple[Tensor, ot.State]:
        h = torch.tanh(F.linear(torch.cat([x_t, state.h], 1), self.weight)) + 0.5 * state.h
        return h, ot.State(h=h)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    cell: str
    options: dict[str, Any] = field(default_factory=dict)
    has_random_masks: bool = False

    def build(self, backend: str, dtype: torch.dtype, bidirectional: bool, **more: Any) -> nn.Module:
        torch.manual_seed(7)
        options = {"bidirectional": bidirectional, **self.options, **more}
        if self.cell == "Recurrent":
            return ot.Recurrent(DecayCell(D, H), 2, **options).to(dtype)
        if self.cell == "Product":
            return ot.Recurrent(PlainCell(D, H), 2, **options).to(dtype)
        if self.cell == "Unequal":
            width = 2 if bidirectional else 1
            make = [
                lambda: ot.LSTMCell(D, H, backend=backend),
                lambda: ot.GRUCell(H * width, 4, backend=backend),
            ]
            cells = [tuple(one() for _ in range(width)) for one in make]
            return ot.Recurrent(cells, **options).to(dtype)
        layer = getattr(ot, self.cell)(D, H, 2, backend=backend, dtype=dtype, **options)
        for parameter in layer.parameters():
            # Zeros and ones would hide a parameter that is not used, or used twice.
            nn.init.uniform_(parameter, -0.6, 0.6)
        return layer


MASKS = {"dropout_in": 0.3, "dropout_between": 0.3, "dropout_out": 0.3, "dropout_recurrent": 0.3}
TABLE = [
    Row("rnn", "RNN"),
    Row("rnn-relu", "RNN", {"nonlinearity": "relu"}),
    Row("rnn-norm", "RNN", {"norm": "layer"}),
    Row("lstm", "LSTM"),
    Row("lstm-no-bias", "LSTM", {"bias": False}),
    Row("lstm-norm", "LSTM", {"norm": "layer"}),
    Row("lstm-peephole", "LSTM", {"peephole": True}),
    Row("lstm-coupled", "LSTM", {"coupled_gates": True}),
    Row("lstm-projection", "LSTM", {"proj_size": 3}),
    Row("lstm-everything", "LSTM", {
        "norm": "layer", "peephole": True, "coupled_gates": True, "proj_size": 3, "residual": True,
        "learn_initial_state": True, "zoneout_h": 0.3, "zoneout_c": 0.2, "weight_drop": 0.2, **MASKS,
    }, has_random_masks=True),
    Row("lstm-zoneout", "LSTM", {"zoneout_h": 0.3, "zoneout_c": 0.2}, has_random_masks=True),
    Row("lstm-weight-drop", "LSTM", {"weight_drop": 0.4}, has_random_masks=True),
    Row("gru", "GRU"),
    Row("gru-reset-before", "GRU", {"reset_after": False}),
    Row("gru-norm-before", "GRU", {"norm": "layer", "reset_after": False}),
    Row("gru-learned", "GRU", {"learn_initial_state": True, "residual": True}),
    Row("gru-dropout", "GRU", MASKS, has_random_masks=True),
    Row("mingru", "MinGRU"),
    Row("mingru-linear-norm", "MinGRU", {"candidate": "linear", "norm": "layer"}),
    Row("minlstm", "MinLSTM"),
    Row("minlstm-linear-no-bias", "MinLSTM", {"candidate": "linear", "bias": False}),
    Row("rglru", "RGLRU"),
    Row(
        "rglru-everything", "RGLRU",
        {**{name: 0.3 for name in ("dropout_in", "dropout_between", "dropout_out")}, "norm": "layer",
         "residual": True, "learn_initial_state": True},
        has_random_masks=True,
    ),
    Row("own-cell", "Recurrent"),
    Row(
        "own-cell-learned", "Recurrent", {"learn_initial_state": True, "dropout_out": 0.3},
        has_random_masks=True,
    ),
    Row("own-cell-product", "Product"),
    Row("unequal-cells", "Unequal"),
]  # fmt: skip
BY_NAME = {row.name: row for row in TABLE}


@dataclass
class Case:
    """One layer to try a law on, and how exactly it must hold."""

    row: Row
    backend: str
    dtype: torch.dtype
    bidirectional: bool
    relative: float

    def __post_init__(self) -> None:
        self.layer = self.row.build(self.backend, self.dtype, self.bidirectional)
        if self.row.has_random_masks:
            ot.set_mask_key(self.layer, seed=3, step=11)
        else:
            self.layer.eval()
        self.generator = torch.Generator().manual_seed(1)

    @property
    def is_exact(self) -> bool:
        """Whether an output is one chain of operations, whatever the batch and the stretch."""
        # The input product of linear recurrences is PyTorch's: its order of summation depends on the rows.
        has_own_product = self.row.cell not in ("MinGRU", "MinLSTM", "RGLRU")
        if self.backend == "native program":
            return True
        return self.backend == "reference" or (self.backend == "native" and _HAS_FMA and has_own_product)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def dt(self, B: int, T: int) -> dict[str, Tensor]:
        return (
            {"dt": torch.rand(B, T, generator=self.generator, dtype=self.dtype)}
            if self.layer.takes_dt
            else {}
        )

    def state(self, B: int) -> ot.State:
        """A state that is nowhere zero."""
        state = self.layer.initial_state(B, rows=[2 * b + 3 for b in range(B)])
        return state.map(lambda leaf: self.randn(*leaf.shape) if leaf.is_floating_point() else leaf)

    def same(self, actual: Any, expected: Any, what: str) -> None:
        """Outputs and states: bitwise where the backend promises it, else by the table."""
        pairs = zip(_tensors(actual), _tensors(expected), strict=True)
        for one, other in pairs:
            assert one.shape == other.shape, (
                f"{what}: shape {tuple(one.shape)}, expected {tuple(other.shape)}"
            )
            if self.is_exact:
                difference = (one - other).abs().max().item() if one.numel() else 0.0
                assert torch.equal(one, other), f"{what}: not bitwise equal, differs by {difference:.3g}"
            else:
                self.close(one, other, what)

    def close(self, actual: Any, expected: Any, what: str, relative: float | None = None) -> None:
        """Maximum error over maximum value within the table."""
        bound = self.relative if relative is None else relative
        for one, other in zip(_tensors(actual), _tensors(expected), strict=True):
            if not one.numel():
                continue
            error = (one - other).abs().max().double()
            error = (error / other.abs().max().double().clamp(min=1e-3)).item()
            assert error <= bound, f"{what}: relative error {error:.3g}, allowed {bound:.3g}"


def _tensors(value: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _claims(row: Row, backend: str) -> bool:
    layer = row.build(backend, torch.float32, False)
    try:
        return bool(layer.explain(torch.zeros(1, 1, D)).path == backend)
    except InputError:
        return False


def _cases() -> list[Any]:
    params = []
    for row in TABLE:
        for backend in ("reference", "torch steps", "torch", "native", "native program"):
            # The cell that is known by its step only multiplies by rows: it keeps the bitwise laws.
            name = "reference" if row.cell == "Recurrent" and backend == "torch steps" else backend
            own = {"Recurrent": ("torch steps", "native program"), "Product": ("native program",)}
            if backend == "native program" and program.MISSING:
                continue
            if backend not in own.get(row.cell, (backend,)):
                continue
            if row.cell not in own and (backend == "native program" or not _claims(row, backend)):
                continue
            for dtype in (torch.float32, torch.float64):
                for bidirectional in (False, True):
                    direction = "both" if bidirectional else "forward"
                    identity = f"{row.name}/{backend}/{str(dtype)[6:]}/{direction}"
                    params.append(pytest.param((row, name, dtype, bidirectional), id=identity))
    return params


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        params = _cases()
        if metafunc.definition.get_closest_marker("resets"):
            params = [param for param in params if param.values[0][1] != "torch"]
        if metafunc.definition.get_closest_marker("causal"):
            params = [param for param in params if not param.values[0][3]]
        metafunc.parametrize("case", params, indirect=True)


@pytest.fixture
def case(
    request: pytest.FixtureRequest, tolerance: dict[torch.dtype, float], monkeypatch: pytest.MonkeyPatch
) -> Case:
    row, backend, dtype, bidirectional = request.param
    if row.cell == "Recurrent" and backend != "native program":
        monkeypatch.setattr(ops, "prepare_program", lambda *_: "this case is for the steps")
    found = Case(row, backend, dtype, bidirectional, tolerance[dtype])
    if backend == "native program":
        assert found.layer.explain(torch.zeros(1, 1, D)).path == backend
    return found


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Build a row of the table by name."""
    return lambda name, backend="auto", dtype=torch.float64, bidirectional=False, **more: BY_NAME[name].build(
        backend, dtype, bidirectional, **more
    )


@pytest.fixture
def plain_cell() -> type[ot.Cell]:
    return PlainCell
