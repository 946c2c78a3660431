"""The native scan against the plain path in float64, for every gate, width, rule and instruction set; and
what it promises beyond: bits that depend on neither batch, chunks nor threads, one node for who traces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ostinato.kernels import scan, scan_operators
from ostinato.kernels.reference import CELLS
from ostinato.kernels.scan import Given, Rule

_native = pytest.importorskip("ostinato._native", reason="the native kernels are not built")

GATES = {"linear": 2, "mingru": 2, "mingru_linear": 2, "minlstm": 3, "minlstm_linear": 3, "rglru": 3}
WIDTHS = (*range(1, 41), 63, 64, 65, 257)


@pytest.fixture(params=_native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def _given(gates: str, B: int, T: int, H: int, has_mask: bool = False, has_resets: bool = False) -> Given:
    """Float64 values, so that both paths start from the same numbers."""
    if gates == "linear":
        inputs = [torch.rand(B, T, H).double(), torch.randn(B, T, H).double()]
    else:
        inputs = [2 * torch.randn(B, T, GATES[gates] * H).double()]
    return Given(
        inputs, torch.randn(B, H).double(), 3 + torch.randn(H).double() if gates == "rglru" else None,
        torch.randn(B, H).double() if has_resets else None,
        torch.rand(B, T) < 0.6 if has_mask else None, torch.rand(B, T) < 0.3 if has_resets else None,
    )  # fmt: skip


def _results(run, rule: Rule, given: Given, dtype: torch.dtype) -> list[Tensor]:
    """y, the final state, and the gradients of everything differentiable."""
    leaves = [None if value is None else value.to(dtype).requires_grad_() for value in given.differentiable]
    y, state = run(rule, given.with_differentiable(leaves))
    generator = torch.Generator().manual_seed(3)
    value = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)).sum()
        for out in (y, state)
    )
    inputs = [leaf for leaf in leaves if leaf is not None]
    return [y, state, *torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)]


def _check(rule: Rule, given: Given, dtype: torch.dtype, bound: float) -> None:
    found = _results(scan_operators.run, rule, given, dtype)
    expected = _results(scan.run_steps, rule, given, torch.float64)
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = ((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-3)).item()
        assert error <= bound, (
            f"{rule}, {tuple(given.start.shape)}: result {k} has relative error {error:.3g}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gates", GATES)
def test_every_width_equals_the_plain_path(gates, dtype, isa, tolerance):
    for H, (B, T) in zip(WIDTHS, itertools.cycle([(1, 1), (3, 2), (1, 7), (3, 7)]), strict=False):
        _check(Rule(gates), _given(gates, B, T, H), dtype, tolerance[dtype])
    _check(Rule(gates), _given(gates, 3, 100, 17), dtype, tolerance[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gates", GATES)
def test_every_rule_equals_the_plain_path(gates, dtype, isa, tolerance):
    flags = itertools.product((False, True), repeat=4)
    for has_mask, has_resets, is_reverse, carries in flags:
        for B, T, H in ((3, 7, 17), (2, 1, 5)):
            given = _given(gates, B, T, H, has_mask, has_resets)
            _check(Rule(gates, is_reverse, carries), given, dtype, tolerance[dtype])


@pytest.mark.parametrize("gates", GATES)
def test_extreme_gates_stay_finite_and_right(gates, isa, tolerance):
    """Gates far outside of what exp can represent, all of one sign, or both."""
    for dtype in (torch.float32, torch.float64):
        for scale in (30.0, 200.0, 2000.0):
            for sign in (-1.0, 1.0, None):
                given = _given(gates, 2, 5, 19)
                if gates != "linear":
                    part = given.inputs[0] * scale if sign is None else given.inputs[0].abs() * scale * sign
                    # The candidate is a value, not a gate: large ones are wanted in no case.
                    part[..., -19:] = given.inputs[0][..., -19:]
                    given = given._replace(inputs=[part])
                if gates == "rglru":
                    given = given._replace(decay=given.decay * scale / 3)
                found = _results(scan_operators.run, Rule(gates), given, dtype)
                assert all(value.isfinite().all() for value in found), f"{dtype} {scale} {sign}: not finite"
                _check(Rule(gates), given, dtype, tolerance[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gates", GATES)
def test_bits_depend_on_neither_batch_chunks_units_nor_threads(gates, dtype, isa):
    B, T, H = 5, 60, 150  # enough for several threads and blocks of units
    whole = _given(gates, B, T, H, True, True)
    whole = whole.with_differentiable(
        [None if value is None else value.to(dtype) for value in whole.differentiable]
    )
    y, state = scan_operators.run(Rule(gates), whole)
    try:
        torch.set_num_threads(3)
        for one, other in zip(scan_operators.run(Rule(gates), whole), (y, state), strict=True):
            assert torch.equal(one, other), "outputs depend on threads"
        grads = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            grads.append(_results(scan_operators.run, Rule(gates), whole, dtype))
        assert all(
            torch.equal(one, other) for some in grads[1:] for one, other in zip(some, grads[0], strict=True)
        )
    finally:
        torch.set_num_threads(1)
    for b in range(B):
        row = slice(b, b + 1)
        alone = whole._replace(
            inputs=[value[row] for value in whole.inputs], start=whole.start[row], initial=whole.initial[row],
            mask=whole.mask[row], resets=whole.resets[row],
        )  # fmt: skip
        for one, other in zip(scan_operators.run(Rule(gates), alone), (y, state), strict=True):
            assert torch.equal(one[0], other[b]), "a row depends on the batch"
    now, ys, t = whole.start, [], 0
    for size in (1, 7, 0, 32, 20):
        cut = slice(t, t + size)
        part = whole._replace(
            inputs=[value[:, cut] for value in whole.inputs], start=now, mask=whole.mask[:, cut],
            resets=whole.resets[:, cut],
        )  # fmt: skip
        piece, now = scan_operators.run(Rule(gates), part)
        ys.append(piece)
        t += size
    assert torch.equal(torch.cat(ys, 1), y)
    assert torch.equal(now, state), "chunks change the bits"
    if gates == "linear":
        some = whole._replace(
            inputs=[value[..., 3:40] for value in whole.inputs], start=whole.start[:, 3:40],
            initial=whole.initial[:, 3:40],
        )  # fmt: skip
        assert torch.equal(scan_operators.run(Rule(gates), some)[0], y[..., 3:40]), "a unit depends on others"


def test_what_stands_in_the_padding_is_not_read():
    given = _given("linear", 3, 9, 20, True, True)
    dirty = given._replace(inputs=[v.masked_fill(~given.mask.unsqueeze(2), torch.nan) for v in given.inputs])
    for run in (scan_operators.run, scan.run_steps):
        clean, found = (_results(run, Rule(), one, torch.float64) for one in (given, dirty))
        assert all(torch.equal(one, other) for one, other in zip(clean, found, strict=True))


def test_any_strides_will_do(tolerance):
    B, T, H = 3, 6, 18
    keep, add = torch.rand(T, H, B).permute(2, 0, 1), torch.randn(B, H, T).transpose(1, 2)
    shared = torch.rand(H, requires_grad=True)
    _check(Rule(), Given([keep, add], torch.zeros(H, B).t()), torch.float32, tolerance[torch.float32])
    wide = shared.expand(B, T, H)
    grads = []
    for run in (scan_operators.run, scan.run_steps):
        y, _ = run(Rule(), Given([wide, add], torch.zeros(1, H).expand(B, H)))
        grads.append(torch.autograd.grad(y.sum(), shared)[0])
    error = ((grads[0] - grads[1]).abs().max() / grads[1].abs().max()).item()
    assert error <= tolerance[torch.float32], f"relative error {error:.3g}"


@pytest.mark.parametrize("gates", GATES)
def test_only_wanted_gradients_are_made(gates):
    given = _given(gates, 2, 5, 9)
    start = given.start.requires_grad_()
    y, _ = scan_operators.run(Rule(gates), given)
    plain, _ = scan.run_steps(Rule(gates), given)
    one, other = (torch.autograd.grad(out.square().sum(), start)[0] for out in (y, plain))
    assert (one - other).abs().max() <= 1e-10


@pytest.mark.parametrize("gates", GATES)
def test_first_and_second_derivatives_are_right(gates):
    given = _given(gates, 2, 4, 3, True, True)
    leaves = [value.requires_grad_() for value in given.differentiable if value is not None]
    places = [value is not None for value in given.differentiable]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        rest = iter(values)
        return scan_operators.run(
            Rule(gates), given.with_differentiable([next(rest) if has else None for has in places])
        )

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gates", GATES)
def test_the_operator_is_registered_as_torch_wants_it(gates, dtype):
    for flags in ((False, False), (True, True)):
        given = _given(gates, 3, 5, 7, *flags)
        leaves = [None if v is None else v.to(dtype).requires_grad_() for v in given.differentiable]
        arguments = (*given.with_differentiable(leaves), *Rule(gates, *flags))
        tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if dtype == torch.float32:
            tests.append("test_aot_dispatch_dynamic")
        opcheck(torch.ops.ostinato.linear_scan, arguments, test_utils=tests)


def test_a_traced_call_is_one_node(tolerance):
    given = _given("linear", 3, 5, 7)
    keep, add = (value.requires_grad_() for value in given.inputs)
    nodes = []

    def backend(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nodes.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module

    def function(keep: Tensor, add: Tensor) -> Tensor:
        return scan_operators.run(Rule(), Given([keep, add], given.start))[0]

    y = torch.compile(function, fullgraph=True, backend=backend)(keep, add)
    assert nodes.count("ostinato.linear_scan") + nodes.count("ostinato.linear_scan.default") == 1, nodes
    one, other = (torch.autograd.grad(out.square().sum(), [keep, add]) for out in (y, function(keep, add)))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_the_native_module_the_steps_run(monkeypatch, tolerance):
    given = _given("mingru", 3, 5, 7, True, True)
    expected = _results(scan_operators.run, Rule("mingru"), given, torch.float64)
    monkeypatch.setattr(scan, "_native", None)
    monkeypatch.setattr(scan, "_MISSING", "the native kernels are not built")
    assert "not built" in scan.obstacle(given.start)
    found = _results(scan_operators.run, Rule("mingru"), given, torch.float64)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-12


def test_other_numbers_take_the_steps():
    given = _given("rglru", 2, 3, 5)
    half = given.with_differentiable([None if v is None else v.bfloat16() for v in given.differentiable])
    assert "bfloat16" in scan.obstacle(half.start)
    y, _ = scan_operators.run(Rule("rglru"), half)
    assert y.dtype == torch.bfloat16
    assert (y.double() - scan_operators.run(Rule("rglru"), given)[0]).abs().max() < 0.1


def test_every_linear_cell_has_native_gates():
    known = {Rule(name).cell[0].name for name in GATES if name != "linear"}
    assert known == {name for name, spec in CELLS.items() if spec.is_linear}
    with pytest.raises(ValueError, match="known: linear, mingru"):
        _native.scan_forward(False, "none", [1, 1, 1], [], [0, 0], [0, 0], [0, 0, 0], False, False, 1, [], [])
