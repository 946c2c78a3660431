import numpy as np
import pytest
import torch

from ostinato.data.token_streams import ScoringStreams, TokenStreams
from ostinato.errors import SizeError

IDS = np.arange(1, 104).astype(np.uint8)
STARTS = np.array([0, 40, 41])


def streams(**given):
    return TokenStreams(IDS, STARTS, 0, **{"streams": 4, "steps": 7, "seed": 3, **given})


def test_an_epoch_is_one_pass_in_streams_that_go_on_from_chunk_to_chunk():
    source = streams()
    batches = list(source)
    assert len(batches) == len(source) == 4
    x = torch.cat([batch["x"] for batch in batches], dim=1)
    y = torch.cat([batch["y"] for batch in batches], dim=1)
    assert x.shape == (4, 25)
    assert len(set(y.flatten().tolist())) == 100
    begins = torch.isin(y, torch.tensor([1, 41, 42]))
    assert (x[begins] == 0).all()
    assert (x[~begins] == y[~begins] - 1).all()
    resets = torch.cat([b.get("resets", torch.zeros_like(b["x"], dtype=torch.bool)) for b in batches], dim=1)
    assert torch.equal(resets, begins)
    assert all(torch.equal(batch["row"], torch.arange(4)) for batch in batches)


def test_epochs_begin_elsewhere_and_a_position_can_be_stored():
    source = streams()
    first, second = list(source), list(source)
    assert not torch.equal(first[0]["x"], second[0]["x"])
    other = streams()
    iterator = iter(other)
    next(iterator), next(iterator)
    stored = other.state_dict()
    third = streams()
    third.load_state_dict(stored)
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(third, first[2:], strict=True))


def test_processes_share_the_streams():
    whole = list(streams())
    for rank in range(2):
        part = streams()
        part.set_share(rank, 2)
        for mine, batch in zip(part, whole, strict=True):
            assert torch.equal(mine["x"], batch["x"][rank::2])
            assert torch.equal(mine["row"], batch["row"][rank::2])
    alone = streams(streams=1)
    alone.set_share(1, 2)
    assert all(not batch for batch in alone)


def test_fewer_units_than_streams_are_refused():
    with pytest.raises(SizeError, match="103 units cannot fill 104 streams"):
        streams(streams=104)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_scoring_counts_every_unit_once(n):
    told = []
    for batch in ScoringStreams(IDS, STARTS, 0, streams=n, steps=9, warm_up=5):
        told += batch["y"][batch["counted"]].tolist()
    assert sorted(told) == IDS.tolist()


def test_streams_that_would_be_shorter_than_their_warm_up_are_not_made():
    assert ScoringStreams(IDS, STARTS, 0, streams=50, warm_up=30).streams == 3
    assert ScoringStreams(IDS, STARTS, 0, streams=1).warm_up == 0
