"""`State`, `Batch`, `Output`: immutable, pytrees, stored and refused."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import ostinato as ot
from ostinato.errors import InputError, SizeError
from ostinato.types import Output, fingerprint, map_state


@pytest.fixture
def state():
    return ot.State(
        layer0=ot.State(h=torch.randn(3, 1, 4), c=torch.randn(3, 1, 4).double()), row=torch.tensor([5, 2, 9])
    )


def _leaves(value):
    return pytree.tree_leaves(value)


def test_a_state_is_named_immutable_and_mapped(state):
    assert state.layer0.h is state["layer0"]["h"]
    with pytest.raises(AttributeError, match="immutable"):
        state.h = torch.zeros(1)
    with pytest.raises(AttributeError, match="it has: layer0, row"):
        _ = state.missing
    assert state.batch_size == 3
    assert state.select(torch.tensor([2, 0])).row.tolist() == [9, 5]
    doubled = map_state(lambda leaf: leaf * 2, (state, None))
    assert doubled[1] is None
    assert torch.equal(doubled[0].layer0.h, state.layer0.h * 2)
    assert state.to(torch.float64).layer0.h.dtype == torch.float64
    grown = state.map(lambda leaf: leaf.float().requires_grad_())
    assert not any(leaf.requires_grad for leaf in _leaves(grown.detach()))
    assert "layer0=State(h=(3, 1, 4)" in repr(state)


def test_bytes_hold_the_state_and_do_not_vary(state):
    data = state.to_bytes("model-a")
    assert data == state.to_bytes("model-a")
    back = ot.State.from_bytes(data, "model-a")
    assert list(back) == list(state)
    assert pytree.tree_structure(back) == pytree.tree_structure(state)
    for one, other in zip(_leaves(back), _leaves(state), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert ot.State.row_ids(data) == ["5", "2", "9"]
    assert ot.State.row_ids(state.to_bytes("a", row_ids=["x", "y", "z"])) == ["x", "y", "z"]
    with pytest.raises(SizeError, match="2 row_ids for 3 rows"):
        state.to_bytes("a", row_ids=["x", "y"])


def test_bytes_of_another_model_are_refused(state):
    torch.manual_seed(1)
    one, other = nn.GRU(2, 3), nn.GRU(2, 3)
    data = state.to_bytes(one)
    ot.State.from_bytes(data, one)
    with pytest.raises(InputError, match="belongs to model"):
        ot.State.from_bytes(data, other)
    other.load_state_dict(one.state_dict())
    ot.State.from_bytes(data, other)
    assert fingerprint(one) == fingerprint(other)
    other.bias_hh_l0.data[0] += 1e-3
    assert fingerprint(one) != fingerprint(other)


def _with_header(data, change):
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    stored = json.loads(header["__metadata__"]["ostinato_state"])
    change(stored)
    header["__metadata__"]["ostinato_state"] = json.dumps(stored)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + size :]


def test_damaged_newer_and_foreign_bytes_are_refused(state):
    data = state.to_bytes("a")
    for broken in (b"", b"not a state at all", data[: len(data) // 2], data[:-1], data[:30]):
        with pytest.raises(InputError, match=r"State\.from_bytes"):
            ot.State.from_bytes(broken, "a")
    with pytest.raises(InputError, match="format 99 is newer"):
        ot.State.from_bytes(_with_header(data, lambda header: header.update(format=99)), "a")
    with pytest.raises(InputError, match="damaged"):
        ot.State.from_bytes(_with_header(data, lambda header: header["leaves"].append("more")), "a")
    with pytest.raises(InputError, match=r"State\.from_bytes"):
        ot.State.from_bytes(_with_header(data, lambda header: header.pop("leaves")), "a")


@pytest.mark.parametrize("directions", [1, 2])
def test_torch_form_round_trips(directions):
    pair = torch.randn(3 * directions, 4, 5), torch.randn(3 * directions, 4, 6)
    state = ot.State.from_torch(pair, directions)
    assert state.h.shape == (4, 3, directions, 5)
    for one, other in zip(state.to_torch(), pair, strict=True):
        assert torch.equal(one, other)
    single = ot.State.from_torch(pair[0], directions)
    assert torch.equal(single.to_torch(), pair[0])
    with pytest.raises(SizeError, match="num_directions"):
        ot.State.from_torch(torch.zeros(3, 4, 5), 2)
    with pytest.raises(InputError, match="to_torch"):
        ot.State(layer0=state).to_torch()


def test_a_batch_reads_by_name():
    batch = ot.Batch(x=torch.zeros(2, 3), lengths=torch.tensor([1, 3]))
    assert batch.size == 2
    assert batch.to(torch.float64).x.dtype == torch.float64
    with pytest.raises(AttributeError, match="it has: x, lengths"):
        _ = batch.y
    assert isinstance(map_state(lambda leaf: leaf[:1], batch), ot.Batch)


def test_output_of_no_steps_is_zero():
    out = Output(torch.zeros(2, 0, 4), ot.State(h=torch.zeros(2, 1, 2, 2)), directions=2)
    for kind in ("last", "max", "mean", "sum"):
        assert torch.equal(out.pooled(kind), torch.zeros(2, 4))
