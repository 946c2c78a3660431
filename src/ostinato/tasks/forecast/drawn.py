"""Sources whose batches are drawn at random: a position of two numbers, and a share for each process."""

from __future__ import annotations

from collections.abc import Iterator

from ostinato.types import Batch


class DrawnSource:
    """Batches of which number j of epoch e is a function of (seed, e, j).

    A resumed run therefore sees what the uninterrupted one would have seen. A subclass says how many batches
    an epoch has (`__len__`) and makes one (`_batch`), of which it keeps the rows in `share`.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.epoch = self.index = 0
        self.rank, self.world_size = 0, 1

    def __len__(self) -> int:
        raise NotImplementedError

    def _batch(self, number: int) -> Batch:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        while self.index < len(self):
            number = self.index
            self.index += 1
            yield self._batch(number)
        self.epoch, self.index = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position."""
        self.epoch, self.index = int(state["epoch"]), int(state["index"])

    def set_share(self, rank: int, world_size: int) -> None:
        """Take every `world_size`-th row of each batch, from row `rank` on."""
        self.rank, self.world_size = rank, world_size

    @property
    def share(self) -> slice:
        """Which rows of a batch this process takes."""
        return slice(self.rank, None, self.world_size)
