"""Linear recurrences: how near the native scan comes to a copy of memory, and how far it is ahead of torch.

    python benchmarks/linear_scan.py [--batch 8] [--steps 4096] [--hidden 256] [--threads N] [--repeats 5]

Prints two tables. The first: `linear_scan`, and gates fused with their scan, forward alone and with
backward; the share of the bandwidth at which torch copies as many bytes (into fresh memory, as all of them
write); and torch's time over ours, for a loop of operators over time and for a scan of logarithmic depth,
gates included. The faster of these two is the peer. The second: whole layers, projections included. All are
timed in turn in one process; a ratio is of medians, and outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ostinato as ot
from ostinato.kernels import scan_operators
from ostinato.kernels.reference import CELLS, CellOptions, Weights
from ostinato.kernels.scan import Given, Rule

# What each scan reads and writes, in arrays of (B, T, H): forward, and backward.
TRAFFIC = {"linear": (3, 6), "mingru": (3, 6), "minlstm": (4, 8), "rglru": (4, 8)}
N_INPUTS = {"linear": 2, "mingru": 2, "minlstm": 3, "rglru": 3}


def given_for(gates: str, B: int, T: int, H: int) -> Given:
    start = torch.zeros(B, H)
    if gates == "linear":
        return Given([torch.rand(B, T, H).requires_grad_(), torch.randn(B, T, H).requires_grad_()], start)
    decay = torch.rand(H) + 3 if gates == "rglru" else None
    return Given([torch.randn(B, T, N_INPUTS[gates] * H).requires_grad_()], start, decay)


def coefficients(gates: str, given: Given) -> tuple[Tensor, Tensor]:
    """keep and add, by torch operators."""
    if gates == "linear":
        return given.inputs[0], given.inputs[1]
    compute = CELLS[gates].coefficients
    assert compute is not None
    tensors = {} if given.decay is None else {"decay": given.decay}
    return compute(given.inputs[0], Weights(tensors, torch.nn.functional.linear), CellOptions())


def by_loop(keep: Tensor, add: Tensor) -> Tensor:
    h, ys = torch.zeros_like(add[:, 0]), []
    for keep_t, add_t in zip(keep.unbind(1), add.unbind(1), strict=True):
        h = torch.addcmul(add_t, keep_t, h)
        ys.append(h)
    return torch.stack(ys, 1)


def by_doubling(keep: Tensor, add: Tensor) -> Tensor:
    """Each round joins stretches of `reach` steps into stretches of twice as many."""
    reach, T = 1, keep.shape[1]
    while reach < T:
        add = torch.cat([add[:, :reach], torch.addcmul(add[:, reach:], keep[:, reach:], add[:, :-reach])], 1)
        keep = torch.cat([keep[:, :reach], keep[:, reach:] * keep[:, :-reach]], 1)
        reach *= 2
    return add


def in_turn(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, one of each in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(found) for name, found in times.items()}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def scans(B: int, T: int, H: int, repeats: int) -> None:
    print(f"\nscans of ({B}, {T}, {H}) float32, {torch.get_num_threads()} threads")
    print(f"{'gates':9}{'pass':>9}{'ms':>9}{'of copy':>9}{'loop':>8}{'doubling':>10}   (torch / ours)")
    for gates, traffic in TRAFFIC.items():
        given = given_for(gates, B, T, H)
        d_y = torch.randn(B, T, H)
        ways = {
            "ours": lambda given=given, gates=gates: scan_operators.run(Rule(gates), given)[0],
            "loop": lambda given=given, gates=gates: by_loop(*coefficients(gates, given)),
            "doubling": lambda given=given, gates=gates: by_doubling(*coefficients(gates, given)),
        }
        expected = ways["loop"]().detach()
        for name, way in ways.items():
            error = relative_error(way().detach(), expected)
            assert error < 2e-5, f"{gates} by {name} differs by {error:.2g}: no ratio"
        for k, what in enumerate(("forward", "both")):
            n_arrays = traffic[0] + k * traffic[1]
            source = torch.randn(n_arrays * B * T * H // 2)

            def run(way: Callable[[], Tensor], both: bool = k == 1, d_y: Tensor = d_y) -> None:
                if both:
                    way().backward(d_y)
                else:
                    with torch.no_grad():
                        way()

            calls = {name: (lambda way=way, run=run: run(way)) for name, way in ways.items()}
            calls["copy"] = source.clone
            times = in_turn(calls, repeats)
            print(
                f"{gates:9}{what:>9}{times['ours'] * 1e3:9.2f}{times['copy'] / times['ours']:9.0%}"
                f"{times['loop'] / times['ours']:8.1f}{times['doubling'] / times['ours']:10.1f}"
            )


def layers(B: int, T: int, H: int, repeats: int) -> None:
    print(f"\nlayers of ({B}, {T}, {H}) float32, forward and backward; time over MinGRU's")
    x = torch.randn(B, T, H)
    made = {
        "MinGRU": ot.MinGRU(H, H),
        "MinLSTM": ot.MinLSTM(H, H),
        "RGLRU": ot.RGLRU(H, H),
        "MinGRU, torch steps": ot.MinGRU(H, H, backend="torch steps"),
        "torch.nn.GRU": torch.nn.GRU(H, H, batch_first=True),
        "torch.nn.LSTM": torch.nn.LSTM(H, H, batch_first=True),
    }
    calls = {name: (lambda layer=layer: layer(x)[0].sum().backward()) for name, layer in made.items()}
    times = in_turn(calls, max(3, repeats // 3))
    for name, seconds in times.items():
        print(f"{name:22}{seconds * 1e3:10.1f} ms{seconds / times['MinGRU']:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(told.threads)
    scans(told.batch, told.steps, told.hidden, told.repeats)
    layers(told.batch, told.steps, told.hidden, told.repeats)


if __name__ == "__main__":
    main()
