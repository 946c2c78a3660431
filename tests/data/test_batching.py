"""Sources: every row once per epoch, every step of a stream in order, positions and shares."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from ostinato.data.batching import RowSampler, RowSource, array_source, padded
from ostinato.data.streams import ArrayStreams, GeneratorStreams
from ostinato.errors import InputError, SizeError

LENGTHS = np.random.default_rng(0).integers(1, 40, 53)


def samplers():
    return {
        "plain": lambda: RowSampler(53, 7, seed=3),
        "ordered": lambda: RowSampler(53, 7, shuffle=False),
        "bucketed": lambda: RowSampler(53, 7, seed=3, lengths=LENGTHS, bucket_batches=3),
        "exact": lambda: RowSampler(49, 7, seed=3),
    }


@pytest.mark.parametrize("kind", list(samplers()))
def test_every_row_once_per_epoch(kind):
    sampler = samplers()[kind]()
    epochs = [[rows.tolist() for rows in sampler] for _ in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(sampler)
        assert sorted(itertools.chain(*epoch)) == list(range(sampler.rows))
    assert (epochs[0] == epochs[1]) == (kind == "ordered")
    assert epochs == [[rows.tolist() for rows in again] for again in [samplers()[kind]()] for _ in range(3)]


def test_buckets_hold_rows_of_similar_length():
    def spread(sampler):
        return sum(int(np.ptp(LENGTHS[rows])) for rows in sampler)

    plain, bucketed = (samplers()[kind]() for kind in ("plain", "bucketed"))
    assert spread(bucketed) < 0.5 * spread(plain)


@pytest.mark.parametrize("kind", list(samplers()))
@pytest.mark.parametrize("stop", [0, 1, 5, 7, 8, 11, 16])
def test_a_sampler_goes_on_where_it_was(kind, stop):
    def stream(sampler):
        while True:
            yield from ((sampler.epoch, rows.tolist()) for rows in sampler)

    first, whole = samplers()[kind](), samplers()[kind]()
    list(itertools.islice(stream(first), stop))
    resumed = samplers()[kind]()
    resumed.load_state_dict(first.state_dict())
    expected = list(itertools.islice(stream(whole), stop + 20))[stop:]
    assert list(itertools.islice(stream(resumed), 20)) == expected


def test_after_the_last_batch_the_epoch_is_over():
    sampler = samplers()["exact"]()
    iterator = iter(sampler)
    for _ in range(7):
        next(iterator)
    resumed = samplers()["exact"]()
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == []
    assert resumed.state_dict() == {"epoch": 1, "batch": 0}


@pytest.mark.parametrize("world_size", [2, 3, 10])
def test_shares_make_the_global_batches(world_size):
    whole = [set(rows.tolist()) for rows in samplers()["bucketed"]()]
    shares = []
    for rank in range(world_size):
        sampler = samplers()["bucketed"]()
        sampler.set_share(rank, world_size)
        shares.append([rows.tolist() for rows in sampler])
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert set(itertools.chain(*parts)) == batch
        assert sum(map(len, parts)) == len(batch)


def test_an_empty_share_is_an_empty_batch():
    source = RowSource(RowSampler(3, 2, shuffle=False), lambda rows: {"rows": rows.tolist()})
    source.set_share(1, 2)
    assert list(source) == [{"rows": [1]}, {}]


def test_ragged_arrays_are_padded():
    g = np.random.default_rng(1)
    x = [g.normal(size=(n, 2)).astype(np.float32) for n in LENGTHS]
    y = [g.integers(0, 9, n) for n in LENGTHS]
    label = g.integers(0, 3, 53)
    seen = 0
    for batch in array_source({"x": x, "y": y, "label": label}, 8, seed=1):
        B, T, _ = batch["x"].shape
        assert int(batch["lengths"].max()) == T
        assert batch["y"].shape == (B, T)
        assert batch["x"].dtype == torch.float32
        for row, length in enumerate(batch["lengths"].tolist()):
            assert not batch["x"][row, length:].any()
            (number,) = [
                i for i in range(53) if len(x[i]) == length and np.allclose(x[i], batch["x"][row, :length])
            ]
            assert batch["y"][row, :length].tolist() == y[number].tolist()
            assert int(batch["label"][row]) == label[number]
            seen += 1
    assert seen == 53


def test_wrong_rows():
    with pytest.raises(SizeError, match=r"same number of rows ≥ 1, got \{'x': 3, 'y': 2\}"):
        array_source({"x": np.zeros((3, 2)), "y": np.zeros(2)}, 2)
    with pytest.raises(SizeError, match="row 1 of 'y' has length 5, that of 'x' 4"):
        array_source({"x": [np.zeros(3), np.zeros(4)], "y": [np.zeros(3), np.zeros(5)]}, 2)
    with pytest.raises(SizeError, match="differ beyond the first axis"):
        padded([np.zeros((3, 2)), np.zeros((3, 1))])
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        RowSampler(3, 0)
    with pytest.raises(SizeError, match="lengths has shape"):
        RowSampler(3, 1, lengths=[1, 2])


DOCUMENTS = [{"x": np.arange(n) + 100 * i, "y": np.arange(n) / 7} for i, n in enumerate([5, 1, 17, 8, 30])]


def streams_of(source, streams):
    """What each stream yields over an epoch: (value, reset) per step, masked steps left out."""
    found = [[] for _ in range(streams)]
    for batch in source:
        mask = batch.get("mask", torch.ones_like(batch["resets"]))
        for row in range(batch.size):
            steps = zip(
                batch["x"][row].tolist(), batch["resets"][row].tolist(), mask[row].tolist(), strict=True
            )
            found[row] += [(x, reset) for x, reset, real in steps if real]
    return found


@pytest.mark.parametrize("streams", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_array_streams_hold_every_step_in_order(streams, steps):
    source = ArrayStreams(DOCUMENTS, streams, steps)
    found = streams_of(source, streams)
    lengths = [len(stream) for stream in found]
    assert sum(lengths) == 61
    assert max(lengths) - min(lengths) <= 1
    values = [x for stream in found for x, _ in stream]
    assert values == [int(x) for document in DOCUMENTS for x in document["x"]]
    for stream in found:
        for place, (x, reset) in enumerate(stream):
            assert reset == (x % 100 == 0 or place == 0), (x, reset)
    assert len(source) == len(list(source))


def test_array_streams_shuffle_documents_and_resume():
    def make():
        return ArrayStreams(DOCUMENTS, 2, 5, shuffle=True, seed=4)

    def forever(source):
        while True:
            yield from source

    epochs = [streams_of(source, 2) for source in [make()] for _ in range(3)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(x for stream in epoch for x, _ in stream) == sorted(
            int(x) for document in DOCUMENTS for x in document["x"]
        )
    for stop in (1, 6, 7, 8, 15):
        first, resumed, whole = make(), make(), make()
        list(itertools.islice(forever(first), stop))
        resumed.load_state_dict(first.state_dict())
        expected = list(itertools.islice(forever(whole), stop + 5))[stop:]
        for ours, theirs in zip(itertools.islice(forever(resumed), 5), expected, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs), stop


def test_array_streams_read_a_memory_map_and_share(tmp_path):
    data = np.memmap(tmp_path / "x", np.float32, "w+", shape=(103, 2))
    data[:] = np.random.default_rng(0).normal(size=data.shape)
    whole = list(ArrayStreams({"x": data}, 3, 10))
    shares = []
    for rank in range(2):
        source = ArrayStreams({"x": data}, 3, 10)
        source.set_share(rank, 2)
        shares.append(list(source))
    for batch, even, odd in zip(whole, *shares, strict=True):
        assert torch.equal(batch["x"][0::2], even["x"])
        assert torch.equal(batch["x"][1::2], odd["x"])
    assert whole[0]["x"].shape == (3, 10, 2)
    assert int(whole[-1]["mask"].sum()) == 103 - 3 * 30


def test_wrong_documents():
    with pytest.raises(SizeError, match="document 1: all its arrays need the same length"):
        ArrayStreams([DOCUMENTS[0], {"x": np.zeros(3), "y": np.zeros(2)}], 2, 5)
    with pytest.raises(SizeError, match="5 time steps cannot fill 6 streams"):
        ArrayStreams(DOCUMENTS[0], 6, 5)


def generated(stream):
    g = np.random.default_rng(stream)
    for number in range(6 + stream):
        yield {"x": np.arange(int(g.integers(0, 9))) + 100 * number}


class Counting:
    """The same documents from an iterator that knows its position."""

    def __init__(self, stream):
        self.stream, self.number, self.drawn = stream, 0, 0

    def __iter__(self):
        return self

    def __next__(self):
        documents = list(generated(self.stream))
        if self.number == len(documents):
            raise StopIteration
        self.number, self.drawn = self.number + 1, self.drawn + 1
        return documents[self.number - 1]

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


@pytest.mark.parametrize("make", [generated, Counting])
def test_generated_streams(make):
    found = streams_of(GeneratorStreams(make, 3, 4), 3)
    for stream, steps in enumerate(found):
        documents = list(generated(stream))
        assert [x for x, _ in steps] == [int(x) for document in documents for x in document["x"]]
        assert all(reset == (x % 100 == 0) for x, reset in steps)


@pytest.mark.parametrize("make", [generated, Counting])
def test_generated_streams_resume(make):
    whole = list(GeneratorStreams(make, 3, 4))
    for stop in range(len(whole) + 1):
        first, resumed = GeneratorStreams(make, 3, 4), GeneratorStreams(make, 3, 4)
        list(itertools.islice(first, stop))
        resumed.load_state_dict(first.state_dict())
        rest = list(resumed)
        assert len(rest) == len(whole) - stop, stop
        for ours, theirs in zip(rest, whole[stop:], strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs), stop


def test_pieces_of_one_endless_document_at_constant_memory():
    def pieces(stream):
        for number in itertools.count():
            yield {"x": np.full((1000, 3), number, np.float32)}

    source = iter(GeneratorStreams(pieces, 4, 100, continues=True))
    first = next(source)
    assert first["resets"][:, 0].all()
    assert int(first["resets"].sum()) == 4
    tracemalloc.start()
    for _ in range(50):
        next(source)
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(500):
        batch = next(source)
        assert not batch["resets"].any()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000, f"{grown} bytes more after 500 chunks"
    assert batch["x"][0, 0, 0] == 55
