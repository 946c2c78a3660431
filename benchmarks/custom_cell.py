"""Cells that a user wrote as one step: natively, as a loop of torch operators, and compiled by torch.compile.

Measured in turns in one process; the figures are medians in milliseconds for a stretch of T steps, forward
without gradients and forward with backward (gradients of x and all parameters). The layer `LSTM` on its own
native kernels stands beside them. First uses (tracing, checking, compiling) are timed apart.

    python benchmarks/custom_cell.py [--sizes 64x8,128x32] [--steps 100] [--threads 1] [--compile] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import ostinato as ot
from ostinato.bench.custom_peers import IndRNN
from ostinato.kernels import ops


class MinimalGated(ot.Cell):
    """One gate for forgetting and for what is seen of the past (arXiv:1603.09420)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.input = nn.Linear(input_size, 2 * hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.candidate = nn.Linear(hidden_size, hidden_size, bias=False)

    def step(self, x_t, state):  # noqa: D102
        a_f, a_n = self.input(x_t).chunk(2, -1)
        f = torch.sigmoid(a_f + self.gate(state.h))
        h = (1 - f) * state.h + f * torch.tanh(a_n + self.candidate(f * state.h))
        return h, ot.State(h=h)


class PlainLSTM(ot.Cell):
    """The cell that the two below add to."""

    has_norm = has_peephole = False

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,), "c": (hidden_size,)}
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size)
        if self.has_norm:
            self.norm_input = nn.LayerNorm(4 * hidden_size)
            self.norm_recurrent = nn.LayerNorm(4 * hidden_size)
            self.norm_cell = nn.LayerNorm(hidden_size)
        if self.has_peephole:
            self.peephole = nn.Parameter(torch.randn(3, hidden_size) * 0.1)

    def step(self, x_t, state):  # noqa: D102
        a_x, a_h = self.input(x_t), self.recurrent(state.h)
        a = self.norm_input(a_x) + self.norm_recurrent(a_h) if self.has_norm else a_x + a_h
        i, f, g, o = a.chunk(4, -1)
        if self.has_peephole:
            i, f = i + self.peephole[0] * state.c, f + self.peephole[1] * state.c
        c = torch.sigmoid(f) * state.c + torch.sigmoid(i) * torch.tanh(g)
        if self.has_peephole:
            o = o + self.peephole[2] * c
        h = torch.sigmoid(o) * torch.tanh(self.norm_cell(c) if self.has_norm else c)
        return h, ot.State(h=h, c=c)


class LayerNormLSTM(PlainLSTM):
    """arXiv:1607.06450."""

    has_norm = True


class PeepholeLSTM(PlainLSTM):
    """Gers and Schmidhuber 2000."""

    has_peephole = True


CELLS = (IndRNN, MinimalGated, PlainLSTM, LayerNormLSTM, PeepholeLSTM)
Run = Callable[[Tensor], Tensor]


def compiled_loop(cell: ot.Cell) -> Run:
    """The loop over a step that torch.compile has compiled."""
    step = torch.compile(lambda x_t, leaves: cell.step(x_t, ot.State(leaves)), dynamic=False)

    def run(x: Tensor) -> Tensor:
        leaves, ys = dict(cell.initial_state(len(x))), []
        for x_t in x.unbind(1):
            y, state = step(x_t, leaves)
            leaves = dict(state)
            ys.append(y)
        return torch.stack(ys, 1)

    return run


def looped(layer: nn.Module) -> Run:
    """The layer on its path `torch steps`."""

    def run(x: Tensor) -> Tensor:
        prepare = ops.prepare_program
        ops.prepare_program = lambda *_: "held to its steps"
        try:
            return layer(x).y
        finally:
            ops.prepare_program = prepare

    return run


def forward(run: Run, x: Tensor) -> None:
    with torch.no_grad():
        run(x)


def training(run: Run, x: Tensor) -> None:
    run(x.detach().requires_grad_()).sum().backward()


def medians_ms(
    runs: dict[str, Run], what: Callable[[Run, Tensor], None], x: Tensor, n: int
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n):
        for name, run in runs.items():
            started_s = time.perf_counter()
            what(run, x)
            times[name].append((time.perf_counter() - started_s) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(kind: type[ot.Cell], H: int, B: int, T: int, *, compiles: bool, repetitions: int) -> dict:
    torch.manual_seed(0)
    layer, plain, x = ot.Recurrent(kind(H, H)), ot.LSTM(H, H), torch.randn(B, T, H)
    runs: dict[str, Run] = {
        "native": lambda v: layer(v).y,
        "plain LSTM": lambda v: plain(v).y,
        "loop": looped(layer),
    }
    started_s = time.perf_counter()
    layer.explain(x)
    found = {
        "cell": kind.__name__,
        "H": H,
        "B": B,
        "T": T,
        "first use, ms": (time.perf_counter() - started_s) * 1e3,
    }
    found["path"] = layer.explain(x).path
    if compiles:
        runs["compiled loop"] = compiled_loop(layer.cells[0][0])
    expected = runs["loop"](x)
    for name, run in runs.items():
        started_s = time.perf_counter()
        training(run, x)
        if name == "compiled loop":
            found["compiling, ms"] = (time.perf_counter() - started_s) * 1e3
        if name != "plain LSTM" and not torch.allclose(run(x), expected, atol=1e-4):
            raise SystemExit(f"{kind.__name__}: {name} gives another result than the loop; no figures for it")
    for what, function in (("forward", forward), ("training", training)):
        found[what] = medians_ms(runs, function, x, repetitions)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="64x8,128x32", help="H x B, separated by commas")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also torch.compile; needs a compiler")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for size in options.sizes.split(","):
        H, B = map(int, size.split("x"))
        for kind in CELLS:
            row = measure(
                kind, H, B, options.steps, compiles=options.compile, repetitions=options.repetitions
            )
            rows.append(row)
            if options.json:
                continue
            first_ms = row["first use, ms"]
            print(f"{row['cell']} H={H} B={B} T={options.steps}: {row['path']}, first use {first_ms:.0f} ms")
            for what in ("forward", "training"):
                ours = row[what]["native"]
                others = ", ".join(
                    f"{name} {value:.2f} ({value / ours:.2f}×)"
                    for name, value in row[what].items()
                    if name != "native"
                )
                print(f"    {what}: {ours:.2f} ms; {others}")
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
