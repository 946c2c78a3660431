"""Single steps from Python, one row: `Session.push` beside torch's cells and ONNX Runtime; median and 99 %.

    python benchmarks/streaming.py [--sizes 32,64,128] [--cells lstm,gru,rnn] [--seconds 0.5] [--threads 1]

D = H. Contestants of a size take turns in one process; a turn is a run of single calls, each timed by itself,
less what reading the clock takes. The ratio is a contestant's median over that of the session with a buffer
for y. ONNX Runtime has its inputs and outputs bound, and is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import ostinato as ot
from ostinato.bench import onnx_peers
from ostinato.bench.cases import Case, Problem
from ostinato.errors import MissingExtraError

LAYERS = {"lstm": ot.LSTM, "gru": ot.GRU, "rnn": ot.RNN}
CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}
FORMATS = {"session bf16": "bfloat16", "session int8": "int8"}
TURNS = 7


def torch_cell(cell: str, layer: Any, x: torch.Tensor) -> Callable[[], None]:
    peer = CELLS[cell](layer.input_size, layer.hidden_size)
    peer.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    state: list[Any] = [None]

    def call() -> None:
        with torch.inference_mode():
            state[0] = peer(x, state[0])

    return call


def onnx_step(cell: str, H: int, threads: int) -> Callable[[], Any] | None:
    """One step of a session of ONNX Runtime, its state going to and fro; None where that is not installed."""
    try:
        onnx_peers.version()
    except MissingExtraError as error:
        print(f"without ONNX Runtime: {error}", file=sys.stderr)
        return None
    peer = onnx_peers.contestant(Problem.draw(Case("steps", cell, "step", H, 1, 1, H)), threads)
    return None if peer is None else peer.call


def contestants(cell: str, H: int, threads: int) -> dict[str, Callable[[], Any]]:
    layer = LAYERS[cell](H, H).eval()
    x, y = torch.randn(1, H), torch.empty(1, H)
    found: dict[str, Callable[[], Any]] = {"session": partial(ot.Session(layer).push, x, y)}
    found["session, new y"] = partial(ot.Session(layer).push, x)
    for name, weights in FORMATS.items():
        found[name] = partial(ot.Session(layer, weights=weights).push, x, y)
    found[f"torch {CELLS[cell].__name__}"] = torch_cell(cell, layer, x)
    peer = onnx_step(cell, H, threads)
    if peer is not None:
        found["ONNX Runtime"] = peer
    return found


def measured(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[int]]:
    """Nanoseconds of every call."""
    clock = time.perf_counter_ns
    times: dict[str, list[int]] = {name: [] for name in calls}
    nothing = []
    for _ in range(1000):
        begin = clock()
        nothing.append(clock() - begin)
    overhead = int(statistics.median(nothing))
    for _ in range(TURNS):
        for name, call in calls.items():
            for _ in range(50):
                call()
            end = clock() + int(seconds * 1e9 / TURNS)
            while True:
                begin = clock()
                call()
                now = clock()
                times[name].append(now - begin - overhead)
                if now > end:
                    break
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="32,64,128,256,512")
    parser.add_argument("--cells", default="lstm,gru,rnn")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each contestant")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print("| cell | H | contestant | median µs | 99 % µs | session × |")
    print("| --- | --- | --- | --- | --- | --- |")
    for cell in chosen.cells.split(","):
        for H in map(int, chosen.sizes.split(",")):
            times = measured(contestants(cell, H, chosen.threads), chosen.seconds)
            base = statistics.median(times["session"])
            for name, values in times.items():
                middle, late = statistics.median(values), sorted(values)[int(0.99 * len(values))]
                line = (
                    f"| {cell} | {H} | {name} | {middle / 1e3:.2f} | {late / 1e3:.2f} | {middle / base:.2f} |"
                )
                print(line, flush=True)


if __name__ == "__main__":
    main()
