"""What `ostinato bench gpu` computes: cases to check, cases to time, and the goals that they answer.

A case is plain values, so that it can be sent to the process that computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

# tf32: tensors of float32 whose products may be rounded; float32: they may not.
PRECISIONS = ("float16", "bfloat16", "tf32", "float32")
SEED = 20261122


@dataclass(frozen=True)
class GpuCase:
    """One thing to do on the GPU.

    Attributes:
        kind: `check` and `scan_check` (beside float64, and repeated), `feature` (that `tag` names), `survey`
            (cuDNN alone), `time`, `scan` and `copy`.
        cell: rnn, lstm or gru; of scans `linear`, or a cell of `layers/linear.py`.
        precision: one of `PRECISIONS`.
        H, B, T, D: sizes.
        layers, is_bidirectional, is_ragged: of a stack; rows of unequal lengths.
        options: of the layer, beyond those.
        mode: of the kernels, which by default is chosen by size: solo, group or step.
        has_resets: rows start anew inside the stretch, and start from a state that is not zero.
        repeats: how often the same bits must come again.
        compiles: whether a step loop under torch.compile is a peer too.
        tag: words for the table, and the name of a feature.
    """

    kind: str
    cell: str = "lstm"
    precision: str = "bfloat16"
    H: int = 512
    B: int = 16
    T: int = 1024
    D: int = 0
    layers: int = 1
    is_bidirectional: bool = False
    is_ragged: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    mode: str = ""
    has_resets: bool = False
    repeats: int = 0
    compiles: bool = False
    tag: str = ""

    @property
    def width(self) -> int:
        """D, by default H."""
        return self.D or self.H

    @property
    def label(self) -> str:
        """As it is named in tables, progress and failures."""
        words = [self.kind, self.cell, self.precision, f"H={self.H}", f"B={self.B}", f"T={self.T}"]
        words += [f"D={self.D}"] if self.D else []
        words += [f"{self.layers} layers"] if self.layers > 1 else []
        words += ["bidirectional"] if self.is_bidirectional else []
        words += ["ragged"] if self.is_ragged else []
        words += ["resets"] if self.has_resets else []
        words += [f"{name}={value}" for name, value in self.options]
        words += [f"mode={self.mode}"] if self.mode else []
        return " ".join([*words, self.tag]).strip()

    def as_job(self) -> dict[str, Any]:
        """Plain values for another process."""
        return asdict(self)

    @classmethod
    def from_job(cls, job: Mapping[str, Any]) -> GpuCase:
        """What `as_job` gave, also after a journey as JSON."""
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in job.items() if name in known}
        return cls(**{**given, "options": tuple((name, value) for name, value in given["options"])})


@dataclass(frozen=True)
class Goal:
    """What a timed case shall reach.

    Attributes:
        name: as in the table.
        over: the contestant that ours is held against; '' where the time itself is the goal.
        forward, training: at least this ratio to `over`, or at most this many seconds; None: no goal.
        is_cost: the ratio is ours over `over`, at most so much.
    """

    name: str
    over: str
    forward: float | None
    training: float | None
    is_cost: bool = False


PERSISTENT = Goal("LSTM B16 T1024 H768 in 16 bits: at most 1.75 ms, 4.6 ms", "", 1.75e-3, 4.6e-3)
LSTM = Goal("LSTM in bf16 and TF32, B16/64, H256–1024: at least 5 times cuDNN", "cuDNN", 5.0, 5.0)
GRU = Goal("GRU, H256–1024: at least 5 times cuDNN forward, 3.5 with backward", "cuDNN", 5.0, 3.5)
NARROW = Goal("H160–192, B32 and more: at least 8 times cuDNN", "cuDNN", 8.0, 8.0)
STACKS = Goal("bidirectional and stacked: at least 4 times cuDNN", "cuDNN", 4.0, 4.0)
RAGGED = Goal("ragged: at least 5 times cuDNN packed", "cuDNN", 5.0, 5.0)
OPTIONS = Goal(
    "layer norm, peephole, zoneout: at most 1.3 times the plain cell", "plain", 1.3, 1.3, is_cost=True
)
SCANS = Goal("linear scans: at least 85 % of the speed of copying", "copy", 0.85, 0.85)
GOALS = (PERSISTENT, LSTM, GRU, NARROW, STACKS, RAGGED, OPTIONS, SCANS)


def goal_of(case: GpuCase) -> Goal | None:
    """The goal that a timed case answers."""
    if case.kind == "scan":
        return SCANS
    if case.kind != "time":
        return None
    if case.options:
        return OPTIONS
    if case.is_ragged:
        return RAGGED
    if case.is_bidirectional or case.layers > 1:
        return STACKS
    return _goal_of_plain(case)


def _goal_of_plain(case: GpuCase) -> Goal | None:
    is_wide = 256 <= case.H <= 1024
    if case.cell == "lstm" and case.H == 768 and (case.B, case.T) == (16, 1024) and case.precision != "tf32":
        return PERSISTENT
    if case.H in (160, 192) and case.B >= 32:
        return NARROW
    if case.cell == "gru" and is_wide:
        return GRU
    if case.cell == "lstm" and is_wide and case.precision in ("bfloat16", "tf32"):
        return LSTM
    return None


@dataclass(frozen=True)
class GpuPlan:
    """What a run does.

    Attributes:
        name: `full`, `quick` or `tiny`.
        checks: correctness, in order of importance.
        surveys: cuDNN alone.
        timings: ours beside the peers, in order of importance.
    """

    name: str
    checks: tuple[GpuCase, ...]
    surveys: tuple[GpuCase, ...]
    timings: tuple[GpuCase, ...]


def full_plan() -> GpuPlan:
    """Everything that the goals ask for."""
    timings = tuple(_timings())
    # Two timed cases that differ in length are one check.
    checks = tuple(dict.fromkeys((*_checks(200), *_grid_checks(timings), *_features())))
    return GpuPlan("full", checks, tuple(_surveys()), timings)


def quick_plan() -> GpuPlan:
    """A few cases of each kind: two or three minutes."""
    timings = tuple(
        replace(case, compiles=False)
        for case in _timings()
        if (case.H in (160, 768) and case.B <= 32) or case.kind in ("scan", "copy") or case.is_ragged
    )
    surveys = tuple(case for case in _surveys() if case.H in (192, 768))
    return GpuPlan("quick", (*_checks(20), *_features()), surveys, timings)


def tiny_plan() -> GpuPlan:
    """Each kernel a few times at small sizes: for tools that slow a program down a hundred times."""
    base = GpuCase("check", H=20, B=3, T=5, D=7, repeats=1)
    checks = [
        replace(base, cell=cell, precision=p)
        for cell in ("rnn", "lstm", "gru")
        for p in ("float32", "bfloat16")
    ]
    checks += [replace(base, mode=mode, H=H) for mode, H in (("solo", 20), ("group", 200), ("step", 40))]
    checks += [
        replace(base, is_bidirectional=True, layers=2),
        replace(base, has_resets=True, is_ragged=True),
        replace(base, cell="gru", has_resets=True, is_ragged=True, is_bidirectional=True),
        replace(base, options=(("peephole", True), ("zoneout_h", 0.1), ("dropout_recurrent", 0.2))),
        *(replace(case, mode=mode) for case in _of_whole_rows(base) for mode in ("solo", "step")),
        replace(base, kind="scan_check", cell="linear", precision="float32", T=70),
        replace(
            base, kind="scan_check", cell="mingru", precision="float32", T=70, has_resets=True, is_ragged=True
        ),
        replace(base, kind="scan_check", cell="rglru", precision="bfloat16", T=70),
    ]
    return GpuPlan("tiny", tuple(checks), (), ())


def _checks(repeats: int) -> Iterator[GpuCase]:
    """Odd sizes, every mode, every option."""
    base = GpuCase("check", B=5, T=37, D=11, repeats=repeats)
    for cell in ("lstm", "gru", "rnn"):
        for H in (1, 63, 500, 1000):
            yield replace(base, cell=cell, H=H)
    for precision in ("float16", "tf32", "float32"):
        for H in (63, 500):
            yield replace(base, H=H, precision=precision)
            yield replace(base, cell="gru", H=H, precision=precision)
    yield replace(base, H=1500, B=3)
    yield replace(base, H=2500, B=3, T=9)
    for cell in ("lstm", "gru"):
        yield replace(base, cell=cell, H=63, is_ragged=True, has_resets=True)
        yield replace(base, cell=cell, H=500, is_ragged=True, has_resets=True, is_bidirectional=True)
        yield replace(base, cell=cell, H=300, layers=2, is_bidirectional=True)
    for mode, H in (("step", 63), ("step", 500), ("group", 63), ("solo", 63)):
        yield replace(base, H=H, mode=mode)
    for options in (
        (("peephole", True),), (("coupled_gates", True),), (("zoneout_h", 0.2), ("zoneout_c", 0.1)),
        (("dropout_recurrent", 0.3),), (("norm", "layer"), ("peephole", True), ("zoneout_c", 0.1)),
        (("recompute", True),), (("proj_size", 100),),
    ):  # fmt: skip
        yield replace(base, H=500, options=options)
    for H in (1, 63, 500, 1000):
        yield from _of_whole_rows(replace(base, H=H))
    for case in _of_whole_rows(base):
        yield replace(case, H=63, mode="step")
        yield replace(case, H=63, precision="float32")
        yield replace(
            case, H=500, precision="float32", is_ragged=True, has_resets=True, is_bidirectional=True
        )
    # More rows than one tile, and than all tiles that run at a time.
    yield replace(base, H=256, B=77)
    yield replace(base, H=1024, B=301, T=19)
    scan = GpuCase("scan_check", "linear", "float32", H=37, B=3, T=1111, repeats=repeats)
    for cell in ("linear", "mingru", "minlstm", "rglru"):
        yield replace(scan, cell=cell)
        yield replace(scan, cell=cell, is_ragged=True, has_resets=True)
    yield replace(scan, precision="bfloat16")
    yield replace(scan, H=256, B=8, T=4096)


def _of_whole_rows(base: GpuCase) -> Iterator[GpuCase]:
    """Cells that need all units of a row within a step: solo, and step by step where they are too large."""
    norm, before = ("norm", "layer"), ("reset_after", False)
    yield replace(base, options=(norm,))
    yield replace(base, cell="gru", options=(before,))
    yield replace(base, cell="gru", options=(before, norm))


def _grid_checks(timings: tuple[GpuCase, ...]) -> Iterator[GpuCase]:
    """The sizes that are timed, shorter: what is compiled for these is there when the clock runs."""
    for case in timings:
        if case.kind == "time":
            yield replace(case, kind="check", T=48, repeats=3, compiles=False)


def _features() -> Iterator[GpuCase]:
    for tag in ("graph", "stream", "autocast", "compile"):
        yield GpuCase("feature", H=96, B=4, T=12, D=24, tag=tag)
        yield GpuCase("feature", "gru", H=384, B=4, T=12, D=24, tag=tag)


def _surveys() -> Iterator[GpuCase]:
    for cell in ("lstm", "gru"):
        for precision in ("float16", "bfloat16", "tf32"):
            for H in (128, 160, 192, 256, 512, 768, 1024):
                for B in (16, 64):
                    yield GpuCase("survey", cell, precision, H=H, B=B, T=256)


def _timings() -> Iterator[GpuCase]:
    base = GpuCase("time")
    yield GpuCase("copy", "linear", "float32", H=1024, B=32, T=4096)
    for precision in ("float16", "bfloat16"):
        yield replace(base, H=768, precision=precision, compiles=precision == "bfloat16")
    for B, H in ((16, 1024), (16, 512), (16, 256), (64, 1024), (64, 512), (64, 256), (64, 768)):
        yield replace(base, B=B, H=H)
    for B, H in ((16, 1024), (16, 512), (16, 256), (64, 512), (64, 256)):
        yield replace(base, B=B, H=H, precision="tf32")
    for precision in ("bfloat16", "float16", "tf32"):
        for B, H in ((16, 512), (16, 1024), (16, 256), (64, 512)):
            yield replace(base, cell="gru", B=B, H=H, precision=precision, compiles=(B, H) == (16, 512))
    for precision in ("bfloat16", "float16"):
        for B, H in ((32, 160), (64, 160), (32, 192), (64, 192)):
            yield replace(base, B=B, H=H, precision=precision)
    yield replace(base, is_bidirectional=True)
    yield replace(base, layers=2)
    yield replace(base, cell="gru", is_bidirectional=True, layers=2)
    yield replace(base, B=32, is_ragged=True)
    yield replace(base, cell="gru", B=32, is_ragged=True)
    for options in ((("peephole", True),), (("zoneout_h", 0.1), ("zoneout_c", 0.1)), (("norm", "layer"),)):
        yield replace(base, options=options)
    for precision in ("float32", "bfloat16"):
        for cell in ("linear", "mingru", "rglru"):
            yield GpuCase("scan", cell, precision, H=1024, B=32, T=4096)
    yield GpuCase("scan", "linear", "float32", H=256, B=8, T=4096)
    for H in (64, 128):
        yield replace(base, H=H)
    yield replace(base, cell="rnn")
    yield replace(base, B=128, H=1024)
    yield replace(base, H=512, precision="float32")
    yield replace(base, H=1536)
    yield replace(base, H=512, B=1)
    yield replace(base, H=512, B=16, T=32)
