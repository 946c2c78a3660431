"""Whole training runs, our layers against the same model in plain PyTorch: time, and equal results.

    python benchmarks/training_runs.py [--quick] [--threads 2] [--only network,language] [--json FILE]

network   The forecaster's network on a bundled series: the batches that the forecaster itself draws, one
          plain loop, one optimizer; only the recurrent layers differ: ours or `torch.nn`'s, equal weights.
forecast  `Forecaster.fit` from table to scores with a fixed number of steps: the layers' default path, and
          every layer held to PyTorch's (`torch`, or `torch steps` where PyTorch has no such layer).
language  A character language model (embedding, GRU or LSTM, linear; truncated BPTT with carried state) on
          the help texts that come with Python; ours against `torch.nn` in its faster, time-major form.

Both sides work in turns in one process; a ratio is theirs over ours, from medians.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import inspect
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ostinato as ot
from ostinato.bench.machine import describe_machine, read_counters, shares_between
from ostinato.bench.tables import ratio_text, time_text
from ostinato.data.bundled import bundled_set, load_bundled
from ostinato.kernels import backends
from ostinato.tasks.forecast import fitting
from ostinato.types import State

SEED = 20261122
# name -> side; the second is what the ratios are over
OURS, THEIRS = "ostinato", "torch"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="network,forecast,language")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    runs = {"network": network_runs, "forecast": forecast_runs, "language": language_runs}
    unknown = set(given.only.split(",")) - set(runs)
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(runs)}")
    machine = describe_machine()
    print(f"{machine['cpu']} ({machine['family']}), torch {torch.__version__}, {given.threads} threads")
    rows = []
    for name in given.only.split(","):
        for row in runs[name](given.quick):
            rows.append({"run": name, **row})
            print(line(rows[-1]), flush=True)
    if given.json:
        report = {"machine": machine, "torch": torch.__version__, "threads": given.threads, "rows": rows}
        given.json.write_text(json.dumps(report, indent=1))


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    times = " / ".join(f"{name} {time_text(row['seconds'][name])}" for name in (THEIRS, OURS))
    quality = ", ".join(
        f"{what} {values[THEIRS]:.4f} / {values[OURS]:.4f}" for what, values in row["quality"].items()
    )
    noisy = "  ~noisy" if row["foreign"] and row["foreign"] > 0.06 else ""
    return (
        f"{row['run']:9s} {row['what']:24s} {row['of']}: {times}, "
        f"ratio {ratio_text(row['ratio'])} ({row['low']:.2f}-{row['high']:.2f}); {quality}{noisy}"
    )


@contextlib.contextmanager
def quiet_garbage() -> Iterator[None]:
    """No garbage collection while timing."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def race(steps: dict[str, Callable[[int], float]], total: int, block: int) -> dict[str, Any]:
    """Run `total` numbered steps of each side in alternating blocks; each returns its loss.

    The first block warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    before = read_counters()
    with quiet_garbage():
        for number, first in enumerate(range(0, total, block)):
            sides = list(steps.items())
            for name, step in sides if number % 2 else reversed(sides):
                started_s = time.perf_counter()
                for index in range(first, min(first + block, total)):
                    losses[name].append(step(index))
                if number:
                    seconds[name].append((time.perf_counter() - started_s) / block)
    shares = shares_between(before, read_counters())
    return {
        **compared(seconds),
        "quality": {f"loss of the last {tail}": {n: mean(v[-tail:]) for n, v in losses.items()}
                    for tail in [max(1, total // 5)]},
        "largest_gap_of_losses": max(
            abs(a - b) / abs(b) for a, b in zip(losses[OURS], losses[THEIRS], strict=True)
        ),
        "losses": losses,
        "foreign": shares and shares.foreign,
    }  # fmt: skip


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, their ratio, and the quartiles of the pairs' ratios."""
    ratios = sorted(a / b for a, b in zip(seconds[THEIRS], seconds[OURS], strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "ratio": medians[THEIRS] / medians[OURS], "low": low, "high": high}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# The forecaster's network --------------------------------------------------------------------------------


class TorchStack(nn.Module):
    """`torch.nn`'s layer in place of one of ours, with its weights and its results."""

    def __init__(self, ours: Any):
        super().__init__()
        kind = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[type(ours).__name__]
        self.layer = kind(ours.input_size, ours.hidden_size, ours.num_layers, batch_first=True)
        self.layer.load_state_dict(ours.state_dict())

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """(y, state), as ours."""
        y, after = self.layer(x, None if state is None else state.to_torch())
        return y, State.from_torch(after)


class StoppedBeforeTraining(Exception):  # noqa: N818 - nothing went wrong
    """Carries what the forecaster was about to train."""


def captured(name: str, **settings: Any) -> tuple[nn.Module, list[Any]]:
    """The network and 64 batches that `Forecaster.fit` would train on, for a bundled set."""

    def stop(model: nn.Module, source: Any, *_: Any, **__: Any) -> None:
        raise StoppedBeforeTraining(model, source)

    original, fitting.train = fitting.train, stop
    try:
        forecaster = ot.Forecaster(bundled_set(name).horizon, seed=SEED, progress="quiet", **settings)
        forecaster.fit(load_bundled(name))
    except StoppedBeforeTraining as found:
        model, source = found.args
    finally:
        fitting.train = original
    batches: list[Any] = []
    while len(batches) < 64:
        batches += itertools.islice(source, 64 - len(batches))
    return model, batches


def network_runs(is_quick: bool) -> Iterator[dict[str, Any]]:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("lstm, quantiles", {}),
        ("gru, quantiles", {"cell": "gru"}),
        ("gru, student t", {"cell": "gru", "head": "student_t"}),
        ("gru, one member of 128", {"cell": "gru", "hidden_size": 128, "members": 1}),
    ]
    for what, settings in cases[:2] if is_quick else cases:
        model, batches = captured("seattle-weather", **settings)
        theirs = copy.deepcopy(model)
        theirs.encoder.stacks = nn.ModuleList(TorchStack(stack) for stack in theirs.encoder.stacks)  # type: ignore[union-attr]
        steps = {OURS: plain_step(model, batches), THEIRS: plain_step(theirs, batches)}
        yield {"what": what, "of": "step", **race(steps, 60 if is_quick else 400, 10)}


def plain_step(model: nn.Module, batches: list[Any]) -> Callable[[int], float]:
    """The loop that everybody writes, one step of it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    model.train()

    def step(index: int) -> float:
        torch.manual_seed(SEED + index)  # the same dropout on both sides
        optimizer.zero_grad()
        output = model.loss(batches[index % len(batches)])  # type: ignore[operator]
        loss = output.total / output.count
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


# The forecaster, end to end ------------------------------------------------------------------------------


@contextlib.contextmanager
def held_to_torch() -> Iterator[None]:
    """Every layer takes PyTorch's fused path, or a loop of its operators, as before there were kernels."""
    original = backends.choose
    signature = inspect.signature(original)

    def choose(*args: Any, **kwargs: Any) -> backends.Path:
        bound = signature.bind(*args, **kwargs)
        if bound.arguments["backend"] != "auto":
            return original(*args, **kwargs)
        for backend in ("torch", "torch steps"):
            bound.arguments["backend"] = backend
            try:
                return original(*bound.args, **bound.kwargs)
            except ot.InputError:
                continue
        raise AssertionError("a loop of operators takes every call")

    backends.choose = choose  # type: ignore[assignment]
    try:
        yield
    finally:
        backends.choose = original


def forecast_runs(is_quick: bool) -> Iterator[dict[str, Any]]:
    for name, cell in (("airpassengers", "lstm"), ("seattle-weather", "lstm"), ("seattle-weather", "gru")):
        if is_quick and (name, cell) != ("airpassengers", "lstm"):
            continue
        seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
        training: dict[str, list[float]] = {OURS: [], THEIRS: []}
        mase: dict[str, list[float]] = {OURS: [], THEIRS: []}
        before = read_counters()
        for repeat in range(2 if is_quick else 4):
            for side in (OURS, THEIRS) if repeat % 2 else (THEIRS, OURS):
                with held_to_torch() if side == THEIRS else contextlib.nullcontext():
                    started_s = time.perf_counter()
                    forecaster = fitted(name, cell, 50 if is_quick else 300, seed=repeat)
                seconds[side].append(time.perf_counter() - started_s)
                training[side].append(forecaster.history_.elapsed_s)
                mase[side].append(next(iter(forecaster.metrics_["model"].values()))["mase"])
        shares = shares_between(before, read_counters())
        said = {
            "what": f"{name}, {cell}",
            "quality": {"MASE": {side: mean(values) for side, values in mase.items()}},
            "foreign": shares and shares.foreign,
        }
        yield {**said, "of": "fit", **compared(seconds)}
        yield {**said, "of": "its training", **compared(training)}


def fitted(name: str, cell: str, steps: int, seed: int) -> Any:
    """A forecaster of a bundled set, trained for so many steps, with scores on the last windows."""
    horizon = bundled_set(name).horizon
    forecaster = ot.Forecaster(
        horizon, cell=cell, steps=steps, seed=seed, test=2 * horizon, max_time_s=None, progress="quiet"
    )
    return forecaster.fit(load_bundled(name))


# A character language model ------------------------------------------------------------------------------


def corpus() -> Tensor:
    """(n,) numbers of characters: Python's own help texts, half a million characters."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([numbers[character] for character in text])


class OurLanguageModel(nn.Module):
    """Embedding, one recurrent layer of ours, linear; tokens are (B, T)."""

    def __init__(self, cell: str, V: int, H: int):
        super().__init__()
        self.embed = nn.Embedding(V, H)
        self.rnn = {"lstm": ot.LSTM, "gru": ot.GRU}[cell](H, H)
        self.out = nn.Linear(H, V)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits and the detached state."""
        y, state = self.rnn(self.embed(tokens), state)
        return self.out(y), state.detach()


class TorchLanguageModel(nn.Module):
    """The same in plain PyTorch; tokens are (T, B), in which `torch.nn` is fastest."""

    def __init__(self, cell: str, V: int, H: int):
        super().__init__()
        self.embed = nn.Embedding(V, H)
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](H, H)
        self.out = nn.Linear(H, V)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits and the detached state."""
        y, state = self.rnn(self.embed(tokens), state)
        return self.out(y), tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def language_runs(is_quick: bool) -> Iterator[dict[str, Any]]:
    text = corpus()
    V = int(text.max()) + 1
    sizes = [(256, 32, 64)] if is_quick else [(256, 32, 64), (128, 32, 100), (512, 32, 64)]
    for H, B, T in sizes:
        for cell in ("gru", "lstm"):
            torch.manual_seed(SEED)
            ours, theirs = OurLanguageModel(cell, V, H), TorchLanguageModel(cell, V, H)
            theirs.load_state_dict(ours.state_dict())
            rows = text[: len(text) // B * B].view(B, -1)
            steps = {
                OURS: language_step(ours, rows, T),
                THEIRS: language_step(theirs, rows.t().contiguous(), T, time_axis=0),
            }
            total = 20 if is_quick else 200 if H < 512 else 80
            yield {"what": f"{cell} H={H} B={B} T={T}", "of": "step", **race(steps, total, 5)}


def language_step(model: nn.Module, streams: Tensor, T: int, *, time_axis: int = 1) -> Callable[[int], float]:
    """One step of truncated BPTT over B parallel streams."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    state: list[Any] = [None]
    chunks = (streams.shape[time_axis] - 1) // T

    def step(index: int) -> float:
        at = index % chunks * T
        if at == 0:
            state[0] = None
        tokens, targets = (streams.narrow(time_axis, at + shift, T).contiguous() for shift in (0, 1))
        optimizer.zero_grad()
        logits, state[0] = model(tokens, state[0])
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
