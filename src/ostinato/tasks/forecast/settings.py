"""Every option of a forecaster, with its only default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ostinato.errors import InputError
from ostinato.layers.heads import DISTRIBUTIONS

TRANSFORMS = ("auto", "none", "log")
HEADS = ("quantile", *DISTRIBUTIONS)


@dataclass(frozen=True)
class ForecastSettings:
    """What a forecaster is told besides the data. Steps are those of the series' grid where nothing is said.

    Raises:
        InputError: a value out of range, or an unknown name.
    """

    horizon: int
    """H, how many steps ahead are forecast."""
    cell: Any = "lstm"
    """rnn, lstm, gru, mingru, minlstm, rglru, or a `Cell` class of your own."""
    head: str = "quantile"
    """quantile: all steps at once; gaussian, student_t, negative_binomial: step by step, sampled paths."""
    hidden_size: int = 48
    """Width of the recurrent state of each member."""
    num_layers: int = 1
    """Recurrent layers of each member."""
    members: int = 3
    """Networks that are trained together and averaged."""
    dropout: float = 0.1
    """In the decoder."""
    season: int | None = None
    """Main season in steps; None: from the frequency, 1: none. The baselines and MASE use it too."""
    init: str | None = None
    """Run folder of a forecaster whose network is gone on with: same columns, time step and horizon."""
    context: int | None = None
    """Length of training windows; None: about two seasons, 64 to 336."""
    transform: str = "auto"
    """auto, none or log: whether the network works on logarithms of the targets."""
    batch_size: int = 32
    """Windows of one optimizer step."""
    learning_rate: float = 1e-3
    """Of AdamW; the weights that are kept are a moving average."""
    epochs: int | None = None
    """Passes over the training part; None: until the validation loss stops improving, or time is up."""
    steps: int | None = None
    """Optimizer steps, likewise."""
    max_time_s: float | None = 240.0
    """Wall time of the whole fit in seconds, reading and validation included; None: no limit."""
    patience: int | None = 10
    """Validations without improvement after which training stops; not used with `epochs` or `steps`."""
    paths: int = 200
    """Sampled paths of the one-step heads."""
    test: int = 0
    """Points at the end of every series that training does not see."""
    seed: int = 0
    """Of initial weights, batches, dropout and sampled paths."""
    device: str = "cpu"
    """cpu, cuda, … or auto."""
    progress: str = "auto"
    """auto, bar, lines or quiet."""

    def __post_init__(self) -> None:
        if self.init is not None:
            object.__setattr__(self, "init", str(self.init))
        if self.head not in HEADS:
            hint = ""
            if self.head in ("quantiles", "mqrnn"):
                hint = "; did you mean 'quantile'?"
            raise InputError(f"head is {self.head!r}; known heads: {', '.join(HEADS)}{hint}")
        if self.transform not in TRANSFORMS:
            raise InputError(f"transform is {self.transform!r}; known: {', '.join(TRANSFORMS)}")
        if self.head == "negative_binomial" and self.transform == "log":
            raise InputError(
                "head='negative_binomial' speaks of counts; it cannot be combined with transform='log'"
            )
        whole = ("horizon", "hidden_size", "num_layers", "members", "batch_size", "paths")
        for name in (*whole, "season", "context", "epochs", "steps", "patience"):
            value = getattr(self, name)
            if value is None and name not in whole:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a whole number ≥ 1, got {value!r}")
        if not isinstance(self.test, int) or self.test < 0:
            raise InputError(f"test must be a whole number ≥ 0, got {self.test!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}")
        for name in ("learning_rate", "max_time_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be finite and above 0, got {value!r}")

    @property
    def minimum_length(self) -> int:
        """The shortest training part that can be learned from."""
        return self.horizon + 4
