"""Laws 3, 4 and 10: padding, resets, order and splits of the batch, and seeds."""

from __future__ import annotations

import copy

import pytest
import torch

import ostinato as ot
from ostinato.layers.dropout import reset_mask_key

B, T, D = 4, 7, 5
LENGTHS = (5, 0, 7, 1)


def _masks() -> dict[str, torch.Tensor]:
    right = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)
    holes = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0] * 7, [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0]])
    return {"right": right, "left-and-holes": holes.bool()}


def _gradients(layer, leaves, output, upstream):
    value = sum((y * g).sum() for y, g in zip(output, upstream, strict=True))
    wanted = [*layer.parameters(), *leaves]
    return torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)


def _floating(state: ot.State) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(state)
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def _start(case, x, state):
    x = x.clone().requires_grad_()
    state = state.map(
        lambda leaf: leaf.detach().clone().requires_grad_() if leaf.is_floating_point() else leaf
    )
    return x, state


@pytest.mark.parametrize("kind", ["right", "left-and-holes"])
def test_padding_changes_nothing(case, kind):
    mask = _masks()[kind]
    clean, state, more = case.randn(B, T, D), case.state(B), case.dt(B, T)
    x, start = _start(case, clean.masked_fill(~mask.unsqueeze(2), float("nan")), state)
    out = case.layer(x, start, mask=mask, **more)
    assert out.y.isfinite().all(), "NaN came in from the padding"
    assert (out.y[~mask] == 0).all(), "y is not 0 at masked steps"
    d_y, d_state = case.randn(*out.y.shape), [case.randn(*leaf.shape) for leaf in _floating(out.state)]
    found = _gradients(case.layer, [x, *_floating(start)], [out.y, *_floating(out.state)], [d_y, *d_state])
    n = len(list(case.layer.parameters()))
    total = [torch.zeros_like(grad) for grad in found[:n]]
    for b in range(B):
        row = mask[b]
        xb, sb = _start(case, clean[b : b + 1, row], state.select(slice(b, b + 1)))
        alone = case.layer(xb, sb, **_alone(more, b, row, case.bidirectional))
        case.same(out.y[b, row], alone.y[0], f"outputs of row {b}")
        case.same(out.state.select(slice(b, b + 1)), alone.state, f"state of row {b}")
        case.same(out.last[b], alone.last[0], f"last of row {b}")
        d_row = [d_y[b : b + 1, row], *(grad[b : b + 1] for grad in d_state)]
        grads = _gradients(case.layer, [xb, *_floating(sb)], [alone.y, *_floating(alone.state)], d_row)
        total = [one + other for one, other in zip(total, grads[:n], strict=True)]
        case.close(found[n][b, row], grads[n][0], f"gradient of x, row {b}")
        for one, other in zip(found[n + 1 :], grads[n + 1 :], strict=True):
            case.close(one[b], other[0], f"gradient of the initial state, row {b}")
    assert (found[n][~mask] == 0).all(), "a gradient reached the padding"
    for (name, _), one, other in zip(case.layer.named_parameters(), found[:n], total, strict=True):
        case.close(one, other, f"gradient of {name}")


def _alone(more, b, row, bidirectional):
    return {name: value[b : b + 1, row] for name, value in more.items()}


def test_an_empty_row_keeps_its_state(case):
    x, state, more = case.randn(B, T, D), case.state(B), case.dt(B, T)
    out = case.layer(x, state, lengths=torch.tensor(LENGTHS), **more)
    assert (out.last[1] == 0).all()
    case.same(out.state.select(slice(1, 2)), state.select(slice(1, 2)), "state of the empty row")
    alone = case.layer(x, state, lengths=[0] * B, **more)
    assert (alone.y == 0).all()
    case.same(alone.state, state, "state when all rows are empty")
    nothing = case.layer(x[:, :0], state, **{name: value[:, :0] for name, value in more.items()})
    assert nothing.y.shape == (B, 0, out.y.shape[2])
    case.same(nothing.state, state, "state after T = 0")


@pytest.mark.resets
def test_nothing_leaks_across_a_reset(case):
    x, more = case.randn(B, T, D), case.dt(B, T)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[0, 3] = resets[1, 0] = resets[2, 6] = resets[2, 3] = True
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 3] = mask[2, 1] = False
    x = x.requires_grad_()
    state = case.state(B)
    out = case.layer(x, state, mask=mask, resets=resets, **more)
    width = out.y.shape[2] // (2 if case.bidirectional else 1)
    after = torch.autograd.grad(out.y[0, 3:, :width].sum(), x, retain_graph=True)[0]
    before = torch.autograd.grad(out.y[0, :3, width:].sum(), x, allow_unused=True)[0]
    if not case.row.options.get("residual") and not case.bidirectional:
        assert (after[0, :3] == 0).all(), "the past leaked through a reset"
    if case.bidirectional and not case.row.options.get("residual"):
        # The second layer reads both directions of the first: neither looks across the reset.
        assert (after[0, :3] == 0).all(), "the past leaked through a reset"
        assert (before[0, 3:] == 0).all(), "the future leaked through a reset"
    if case.row.has_random_masks:
        return
    fresh = case.layer(x[:1, 3:], mask=mask[:1, 3:], **{n: v[:1, 3:] for n, v in more.items()})
    if case.bidirectional:
        return
    case.same(out.y[0, 3:], fresh.y[0], "outputs after a reset at a masked step")
    case.same(out.state.select(slice(0, 1)), fresh.state, "state after a reset")


def test_the_order_and_split_of_the_batch_change_nothing(case):
    x, state, more = case.randn(B, T, D), case.state(B), case.dt(B, T)
    mask = _masks()["left-and-holes"]
    whole = case.layer(x, state, mask=mask, **more)
    order = torch.tensor([2, 0, 3, 1])
    moved = case.layer(
        x[order], state.select(order), mask=mask[order], **{n: v[order] for n, v in more.items()}
    )
    case.same(moved.y, whole.y[order], "outputs of a permuted batch")
    case.same(moved.state, whole.state.select(order), "state of a permuted batch")
    for rows in (slice(0, 1), slice(1, 4)):
        part = case.layer(
            x[rows], state.select(rows), mask=mask[rows], **{n: v[rows] for n, v in more.items()}
        )
        case.same(part.y, whole.y[rows], f"outputs of rows {rows}")
        case.same(part.state, whole.state.select(rows), f"state of rows {rows}")


def test_the_same_seed_gives_the_same_bits(case):
    x, more = case.randn(B, T, D), case.dt(B, T)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        layer = copy.deepcopy(case.layer)
        reset_mask_key(layer)
        out = layer(x, lengths=torch.tensor(LENGTHS), **more)
        out.y.square().sum().backward()
        results.append([out.y, *_floating(out.state), *(p.grad for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other), f"differs by {(one - other).abs().max().item():.3g}"
