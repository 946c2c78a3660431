"""The barrier between thread blocks (`triton_tiles.arrive`, `wait`), as a model under random schedules.

Blocks run in any order, and memory is relaxed: a store stands in its block's buffer and reaches the others
in any order, any time later; a load may see what an earlier load of the same block brought into its cache.
A release waits until the block's stores have reached the others, an acquire empties the block's cache. The
counter is atomic.

Each block writes its part of a value for every step and reads all parts of the step before, as forward (one
place for each step) and backward (two places in turn) do. A mutation takes one ingredient away, and must be
found out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BITS = 32


class Trapped(Exception):  # noqa: N818 - it is what the device calls it
    """A block has polled often enough."""


@dataclass
class Protocol:
    """What the kernels do; a mutation is one field with another value."""

    n_places: int | None = 2  # of a part: steps take them in turn; None: each step its own
    releases: bool = True
    acquires: bool = True
    waits: bool = True
    counts_anew: bool = True  # each launch has a counter of zero
    most_polls: int = 100_000
    compares_difference: bool = True
    first_count: int = 0


@dataclass
class Memory:
    """What all see, what each block has stored on its way there, and what each block has in its cache."""

    n_blocks: int
    draw: random.Random
    seen: dict[tuple[int, int], int] = field(default_factory=dict)
    counter: int = 0

    def __post_init__(self) -> None:
        self.stored: list[list[tuple[tuple[int, int], int]]] = [[] for _ in range(self.n_blocks)]
        self.cached: list[dict[tuple[int, int], int | None]] = [{} for _ in range(self.n_blocks)]

    def store(self, block: int, place: tuple[int, int], value: int) -> None:
        self.stored[block].append((place, value))

    def drift(self) -> None:
        """Some store of some block reaches the others; of one place, in their order."""
        block = self.draw.randrange(self.n_blocks)
        if self.stored[block]:
            place = self.draw.choice(self.stored[block])[0]
            k = next(k for k, (one, _) in enumerate(self.stored[block]) if one == place)
            self.seen[place] = self.stored[block].pop(k)[1]

    def release(self, block: int) -> None:
        while self.stored[block]:
            place, value = self.stored[block].pop(0)
            self.seen[place] = value

    def acquire(self, block: int) -> None:
        self.cached[block].clear()

    def load(self, block: int, place: tuple[int, int]) -> int | None:
        own = [value for one, value in self.stored[block] if one == place]
        if own:
            return own[-1]
        cache = self.cached[block]
        if place not in cache or self.draw.random() < 0.3:
            cache[place] = self.seen.get(place)
        return cache[place]


def _wrapped(count: int) -> int:
    """As a register of 32 bits, signed."""
    return (count + 2 ** (BITS - 1)) % 2**BITS - 2 ** (BITS - 1)


def _block(block: int, n_steps: int, memory: Memory, how: Protocol, wrong: list[str]) -> Iterator[None]:
    """One thread block; each `yield` is a moment at which others may run."""
    n = memory.n_blocks
    for step in range(n_steps):
        place = step if how.n_places is None else step % how.n_places
        if step and how.waits:
            target, polls = _wrapped(how.first_count + n * step), 0
            while True:
                counter = _wrapped(memory.counter)
                if how.acquires:
                    memory.acquire(block)
                ahead = _wrapped(counter - target) if how.compares_difference else counter - target
                if ahead >= 0:
                    break
                polls += 1
                if polls > how.most_polls:
                    raise Trapped(f"block {block} at step {step}")
                yield
        if step:
            before = step - 1 if how.n_places is None else (step - 1) % how.n_places
            others = list(range(n))
            memory.draw.shuffle(others)
            for other in others:
                found = memory.load(block, (other, before))
                if found != step - 1:
                    wrong.append(f"block {block} at step {step} read {found} from block {other}")
                yield
        memory.store(block, (block, place), step)
        yield
        if how.releases:
            memory.release(block)
        memory.counter += 1
        yield


def _run(
    seed: int,
    n_blocks: int,
    n_steps: int,
    how: Protocol,
    *,
    dead: int | None = None,
    memory: Memory | None = None,
) -> list[str]:
    """What was read wrongly; every schedule is fair, and blocks have speeds of their own."""
    draw = random.Random(seed)
    memory = memory or Memory(n_blocks, draw, counter=how.first_count)
    if how.counts_anew:
        memory.counter = how.first_count
    wrong: list[str] = []
    running = {b: _block(b, n_steps, memory, how, wrong) for b in range(n_blocks) if b != dead}
    speeds = {b: draw.choice((1, 1, 2, 6)) for b in running}
    while running:
        block = draw.choices(list(running), [speeds[b] for b in running])[0]
        for _ in range(draw.choice((1, 1, 4, 12))):
            if next(running[block], running) is running:
                del running[block]
                break
        if draw.random() < 0.5:
            memory.drift()
    return wrong


@pytest.mark.parametrize("n_places", [2, None], ids=["two places", "a place each step"])
def test_every_block_reads_the_step_before(n_places):
    for seed in range(60):
        n_blocks, n_steps = 1 + seed % 7, 12
        assert not _run(seed, n_blocks, n_steps, Protocol(n_places=n_places)), f"seed {seed}"


@pytest.mark.parametrize(
    "mutation",
    [{"releases": False}, {"acquires": False}, {"n_places": 1}, {"waits": False}],
    ids=lambda mutation: " ".join(f"{name}={value}" for name, value in mutation.items()),
)
def test_nothing_can_be_left_out(mutation):
    found = [_run(seed, 4, 12, Protocol(**mutation)) for seed in range(40)]
    assert any(found), f"{mutation} is not needed, or the model does not show why it is"


def test_a_place_for_each_step_needs_the_release_too():
    assert any(_run(seed, 4, 12, Protocol(n_places=None, releases=False)) for seed in range(40))


def test_a_dead_block_ends_in_the_trap():
    for seed in range(5):
        with pytest.raises(Trapped):
            _run(seed, 3, 12, Protocol(most_polls=200), dead=seed % 3)


def test_a_launch_needs_a_counter_of_its_own():
    """Nobody waits behind a counter that an earlier launch has left high, or that another stream moves."""
    found = []
    for seed in range(20):
        memory = Memory(3, random.Random(seed))
        assert not _run(seed, 3, 8, Protocol(), memory=memory)
        memory.seen.clear()
        found += _run(seed + 1, 3, 8, Protocol(counts_anew=False), memory=memory)
    assert found
    memory = Memory(3, random.Random(1))
    for seed in range(3):
        assert not _run(seed, 3, 8, Protocol(), memory=memory), (
            "a counter of zero is enough, whatever memory holds"
        )


def test_a_counter_may_wrap():
    """Differences stay right where 32 bits do not hold the count; plain comparison would let blocks pass."""
    near_the_end = {"first_count": 2 ** (BITS - 1) - 20}
    for seed in range(20):
        assert not _run(seed, 4, 12, Protocol(**near_the_end))
    plain = Protocol(**near_the_end, compares_difference=False, most_polls=300)
    found: list[str] = []
    for seed in range(20):
        try:
            found += _run(seed, 4, 12, plain)
        except Trapped as trapped:
            found.append(str(trapped))
    assert found


def test_the_kernels_do_what_the_model_does():
    """Release after all threads have stored, acquire in every poll, differences, and a bound."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from ostinato.kernels import triton_tiles

    text = Path(triton_tiles.__file__).read_text(encoding="utf-8")
    arrive = text[text.index("def arrive(") : text.index("def wait(")]
    assert arrive.index("tl.debug_barrier()") < arrive.index(
        'tl.atomic_add(counter, 1, sem="release", scope="gpu")'
    )
    wait = triton_tiles.WAIT.value
    order = ["POLL:", "ld.acquire.gpu", "sub.s32", "bra ARRIVED", "add.s32 %polls", "bra POLL", "trap"]
    places = [wait.index(one) for one in order]
    assert places == sorted(places), wait
