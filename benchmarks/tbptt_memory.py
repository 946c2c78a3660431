"""Resident memory while truncated BPTT trains on a generated stream of a million time steps.

    python benchmarks/tbptt_memory.py [--time-steps 1000000] [--json]

The stream is made while it is used (`GeneratorStreams`), the state is carried and detached; memory after the
first tenth and at the end must agree within 5 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ostinato.data.streams import GeneratorStreams
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import LossOutput


class Model(nn.Module):
    """Predicts the next value of a noisy sine wave."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def loss(self, batch, state=None):
        """Squared error, summed over all steps."""
        y, state = self.rnn(batch["x"], state)
        error = (self.head(y) - batch["y"]) ** 2
        return LossOutput(error.sum(), torch.tensor(error.numel()), state)


def signal(stream):
    """An endless wave in pieces of 1000 steps."""
    g = np.random.default_rng(stream)
    for number in itertools.count():
        t = np.arange(number * 1000, (number + 1) * 1000 + 1)[:, None]
        wave = (np.sin(t / (5 + stream)) + 0.1 * g.normal(size=t.shape)).astype(np.float32)
        yield {"x": wave[:-1], "y": wave[1:]}


def resident_bytes():
    """Resident set size now."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Memory:
    """Resident memory every `every` optimizer steps."""

    def __init__(self, every):
        self.every, self.sizes = every, []

    def notify(self, event):
        """Look at the clock, or the memory, after each step."""
        if type(event).__name__ == "StepEnded" and event.step % self.every == 0:
            self.sizes.append(resident_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-steps", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=50)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = arguments.time_steps // arguments.chunk
    memory = Memory(max(1, steps // 20))
    source = GeneratorStreams(signal, arguments.streams, arguments.chunk, continues=True)
    settings = TrainingSettings(steps=steps, carry_state=True)
    with tempfile.TemporaryDirectory() as folder:
        history = train(Model(), source, settings, folder=folder, listeners=[memory], progress="quiet")
    early, late = memory.sizes[1], memory.sizes[-1]
    result = {
        "time_steps": steps * arguments.chunk,
        "streams": arguments.streams,
        "resident_bytes": memory.sizes,
        "growth": late / early - 1,
        "largest": max(memory.sizes) / early - 1,
        "loss": [history["train_loss"][0], history["train_loss"][-1]],
        "elapsed_s": history.elapsed_s,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['time_steps']} time steps in {arguments.streams} streams, {history.elapsed_s:.0f} s")
    print(f"resident after a tenth {early / 2**20:.1f} MiB, at the end {late / 2**20:.1f} MiB")
    print(f"growth {result['growth']:+.2%}, largest {result['largest']:+.2%}")
    print(f"loss {result['loss'][0]:.4f} → {result['loss'][1]:.4f}")


if __name__ == "__main__":
    main()
