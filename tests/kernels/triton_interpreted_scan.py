"""The scan's kernels in Triton's interpreter against the steps in float64; `test_triton_scan.py` runs this.

Tiles are tiny: the interpreter takes milliseconds for each of their operators.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ostinato.kernels import gpu_choice, scan, scan_operators, triton_scan
from ostinato.kernels.scan import Given, Rule
from ostinato.kernels.triton_scan import Plan, Tile

N_GATES = {"linear": 2, "mingru": 2, "mingru_linear": 2, "minlstm": 3, "minlstm_linear": 3, "rglru": 3}
TILE = Tile(2, 2, 4, W=2)
WALK, LOOK_BACK = Plan(TILE, False), Plan(TILE, True)


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch):
    monkeypatch.setattr(gpu_choice, "DEVICES", {*gpu_choice.DEVICES, "cpu"})
    monkeypatch.setattr(triton_scan, "_BLOCK_OF_SOURCES", 4)
    monkeypatch.setattr(triton_scan, "plan", lambda *_, **__: LOOK_BACK)


def _given(gates: str, B: int, T: int, H: int, has_mask: bool = False, has_resets: bool = False) -> Given:
    if gates == "linear":
        inputs = [torch.rand(B, T, H).double(), torch.randn(B, T, H).double()]
    else:
        inputs = [2 * torch.randn(B, T, N_GATES[gates] * H).double()]
    return Given(
        inputs, torch.randn(B, H).double(), 3 + torch.randn(H).double() if gates == "rglru" else None,
        torch.randn(B, H).double() if has_resets else None,
        torch.rand(B, T) < 0.6 if has_mask else None, torch.rand(B, T) < 0.3 if has_resets else None,
    )  # fmt: skip


def _check(rule: Rule, given: Given, how: Plan, bound: float, dtype: torch.dtype = torch.float32) -> None:
    """Outputs and the gradients of everything, of the same numbers in `dtype`."""
    narrow = given.with_differentiable([None if v is None else v.to(dtype) for v in given.differentiable])
    leaves = [None if v is None else v.double().requires_grad_() for v in narrow.differentiable]
    expected = scan.run_steps(rule, given.with_differentiable(leaves))
    upstream = [torch.randn_like(value).to(dtype) for value in expected]
    value = sum((one * d_one.double()).sum() for one, d_one in zip(expected, upstream, strict=True))
    wanted = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
    y, state = triton_scan.forward(rule, narrow, how)
    found = triton_scan.backward(rule, narrow, [True] * len(leaves), y, upstream, how)
    own = [y, state, *[one for one, leaf in zip(found, leaves, strict=True) if leaf is not None]]
    for k, (one, other) in enumerate(zip(own, [*expected, *gradients], strict=True)):
        assert one.dtype == dtype
        error = ((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-3)).item()
        assert error <= bound, f"{rule}, {how}: result {k} has relative error {error:.3g}"


@pytest.mark.parametrize("gates", N_GATES)
def test_gates(gates, tolerance):
    """Sizes that fill no tile; both ways; all rules in turn."""
    rules = [(False, False, False, False), (True, True, True, False), (True, True, False, True)]
    for k, (has_mask, has_resets, is_reverse, carries) in enumerate(rules):
        given = _given(gates, 2, 7, 5, has_mask, has_resets)
        _check(Rule(gates, is_reverse, carries), given, (LOOK_BACK, WALK)[k % 2], tolerance[torch.float32])


@pytest.mark.parametrize("is_reverse", [False, True])
@pytest.mark.parametrize("how", [WALK, LOOK_BACK], ids=["walk", "look-back"])
def test_rules(how, is_reverse, tolerance):
    for has_mask, has_resets, carries in [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1)]:
        given = _given("linear", 1, 9, 3, has_mask, has_resets)
        _check(Rule("linear", is_reverse, bool(carries)), given, how, tolerance[torch.float32])
    lengths = torch.tensor([9, 4, 0])
    ragged = _given("mingru", 3, 9, 2)._replace(mask=torch.arange(9) < lengths[:, None])
    _check(Rule("mingru", is_reverse), ragged, how, tolerance[torch.float32])
    gap = _given("mingru", 1, 13, 2, True, True)._replace(
        mask=torch.tensor([[1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]]).bool(),
        resets=torch.tensor([[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]]).bool(),
    )
    _check(Rule("mingru", is_reverse), gap, how, tolerance[torch.float32])


def test_sizes(tolerance):
    for B, T, H in ((1, 1, 1), (3, 4, 4), (1, 21, 3), (2, 5, 9)):
        _check(Rule("minlstm"), _given("minlstm", B, T, H), LOOK_BACK, tolerance[torch.float32])
    _check(
        Rule("linear"), _given("linear", 1, 40, 2), Plan(Tile(4, 4, 2, W=1), True), tolerance[torch.float32]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype, tolerance):
    for gates in ("linear", "rglru"):
        _check(Rule(gates), _given(gates, 2, 9, 5, True, True), LOOK_BACK, tolerance[torch.bfloat16], dtype)


def test_any_strides(tolerance):
    B, T, H = 3, 6, 5
    keep, add = torch.rand(T, H, B).permute(2, 0, 1), torch.randn(B, H, T).transpose(1, 2)
    _check(Rule(), Given([keep, add], torch.zeros(H, B).t()), WALK, tolerance[torch.float32])
    shared = (
        torch.rand(H).expand(B, T, H),
        torch.randn(B, 1, H).expand(B, T, H),
        torch.zeros(1, H).expand(B, H),
    )
    y, state = triton_scan.forward(Rule(), Given(list(shared[:2]), shared[2]), LOOK_BACK)
    plain = scan.run_steps(Rule(), Given(list(shared[:2]), shared[2]))
    assert (y - plain[0]).abs().max() <= 1e-5
    assert (state - plain[1]).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_padding_is_not_read_and_what_overflows_is_contained():
    given = _given("linear", 2, 9, 4, True)
    given = given.with_differentiable([None if v is None else v.float() for v in given.differentiable])
    dirty = given._replace(inputs=[v.masked_fill(~given.mask.unsqueeze(2), torch.nan) for v in given.inputs])
    clean, found = (triton_scan.forward(Rule(), one, LOOK_BACK) for one in (given, dirty))
    assert all(torch.equal(one, other) for one, other in zip(clean, found, strict=True))
    huge = Given([torch.full((1, 12, 2), 1e30), torch.zeros(1, 12, 2)], torch.zeros(1, 2))
    for how in (WALK, LOOK_BACK):
        assert not triton_scan.forward(Rule(), huge, how)[0].any(), "of a state that is zero it makes zero"


def test_nan_stays_where_it_belongs():
    keep, add = torch.rand(1, 16, 2), torch.randn(1, 16, 2)
    keep[0, 5, 0] = torch.nan
    y, _ = triton_scan.forward(Rule(), Given([keep, add], torch.zeros(1, 2)), LOOK_BACK)
    assert torch.equal(y.isnan()[0, :, 0], torch.arange(16) >= 5)
    assert not y[..., 1].isnan().any()


def test_the_state_may_be_wider_than_the_inputs():
    part, start = torch.randn(2, 5, 6).bfloat16(), torch.randn(2, 3)
    y, state = scan_operators.run(Rule("mingru"), Given([part.requires_grad_()], start))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    (gradient,) = torch.autograd.grad(y.float().sum() + state.sum(), part)
    assert gradient.dtype == torch.bfloat16


def test_wanted_gradients_only_and_none_given():
    given = _given("linear", 1, 6, 2)
    given = given.with_differentiable([None if v is None else v.float() for v in given.differentiable])
    y, _ = triton_scan.forward(Rule(), given, WALK)
    found = triton_scan.backward(Rule(), given, [False, True, True, False, False], y, (y, None), WALK)
    assert found[0] is None
    everything = triton_scan.backward(Rule(), given, [True] * 5, y, (y, None), WALK)
    assert torch.equal(found[1], everything[1])
    assert not triton_scan.backward(Rule(), given, [True] * 5, y, (None, None), WALK)[1].any()


def test_operators_take_the_kernels(monkeypatch):
    calls: list[str] = []
    forward = triton_scan.forward
    monkeypatch.setattr(triton_scan, "forward", lambda *all_of: calls.append("forward") or forward(*all_of))
    x: Tensor = torch.randn(1, 3, 4)
    scan_operators.run(Rule("mingru"), Given([x], torch.zeros(1, 2)))
    assert calls == ["forward"]
