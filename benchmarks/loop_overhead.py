"""Overhead of the training loop over a bare PyTorch loop, at steps of about 3 ms.

Both train the same model on the same batches with the same optimizer and gradient clipping, in turns, in one
process; the figure is the ratio of the median step times, and the median over the repetitions.

    python benchmarks/loop_overhead.py [--repetitions 15] [--steps 200] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import nn

from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import Batch, LossOutput


class Model(nn.Module):
    """A GRU of a size that makes a step of about 3 ms."""

    def __init__(self, hidden: int):
        super().__init__()
        self.rnn = nn.GRU(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def loss(self, batch, state=None):
        """Squared error, summed over all steps."""
        y, state = self.rnn(batch["x"], state)
        error = (self.head(y).squeeze(-1) - batch["y"]) ** 2
        return LossOutput(error.sum(), torch.tensor(error.numel()), state)


def bare_step_s(model, batches, steps, *, fused):
    """Seconds per step of the loop that everybody writes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    model.train()
    started_s = time.perf_counter()
    for index in range(steps):
        batch = batches[index % len(batches)]
        optimizer.zero_grad()
        output = model.loss(batch)
        loss = output.total / output.count
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return (time.perf_counter() - started_s) / steps


class FirstAndLast:
    """The times of the first and the last step: what a run costs to set up is not overhead per step."""

    def __init__(self):
        self.steps = []

    def notify(self, event):
        """Look at the clock, or the memory, after each step."""
        if type(event).__name__ == "StepEnded":
            self.steps.append(time.perf_counter())


def loop_step_s(model, batches, steps):
    """Seconds per step of `train`, with a listener."""
    watch = FirstAndLast()
    settings = TrainingSettings(steps=steps + 1, clip_norm=1.0)
    train(model, batches, settings, listeners=[watch], progress="quiet")
    return (watch.steps[-1] - watch.steps[0]) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [Batch(x=torch.randn(16, 32, 8), y=torch.randn(16, 32)) for _ in range(10)]
    times = {"bare": [], "bare_fused": [], "loop": []}
    for _ in range(arguments.repetitions):
        times["bare"].append(bare_step_s(Model(arguments.hidden), batches, arguments.steps, fused=None))
        times["bare_fused"].append(bare_step_s(Model(arguments.hidden), batches, arguments.steps, fused=True))
        times["loop"].append(loop_step_s(Model(arguments.hidden), batches, arguments.steps))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "step_s": medians,
        "overhead": statistics.median(a / b for a, b in zip(times["loop"], times["bare"], strict=True)) - 1,
        "overhead_over_fused": statistics.median(
            a / b for a, b in zip(times["loop"], times["bare_fused"], strict=True)
        )
        - 1,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in medians.items():
        print(f"{name:12} {value * 1e3:8.3f} ms per step")
    print(f"overhead over the bare loop            {result['overhead']:+.1%}")
    print(f"overhead over a bare loop, fused Adam  {result['overhead_over_fused']:+.1%}")


if __name__ == "__main__":
    main()
