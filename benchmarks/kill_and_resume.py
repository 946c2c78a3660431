"""kill -9 at random instants, then resume: the final weights equal those of a run never interrupted, bitwise.

    python benchmarks/kill_and_resume.py [--kills 10] [--seed 0]

Each run trains with truncated BPTT, dropout, a moving average and a checkpoint every three steps, so that
many kills fall into the writing of one. A run is killed after a random part of the time of a whole one.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from ostinato.data.batching import array_source
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.types import LossOutput


class Model(nn.Module):
    """An LSTM with dropout on its outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.rnn = nn.LSTM(4, 32, batch_first=True)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(32, 1)

    def loss(self, batch, state=None):
        """Squared error, summed over all steps."""
        y, state = self.rnn(batch["x"], state)
        error = (self.head(self.drop(y)).squeeze(-1) - batch["y"]) ** 2
        return LossOutput(error.sum(), torch.tensor(error.numel()), state)


def run(folder):
    """Train in `folder`, from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(2)
    arrays = {"x": torch.randn(96, 60, 4, generator=g), "y": torch.randn(96, 60, generator=g)}
    settings = TrainingSettings(
        epochs=12, tbptt_steps=20, averaging="ema", schedule="cosine", checkpoint_every_steps=3
    )
    model = Model()
    source = array_source(arrays, 16, seed=3)
    validation = array_source(arrays, 96, shuffle=False)

    def validate(model):
        return {"loss": sum(float(model.loss(batch).total) for batch in validation)}

    train(model, source, settings, validate=validate, folder=folder, resume=True, progress="quiet")
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="run there and do nothing else")
    arguments = parser.parse_args()
    if arguments.folder:
        run(arguments.folder)
        return
    instants = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        started_s = time.monotonic()
        expected = run(Path(temporary, "whole"))
        whole_s = time.monotonic() - started_s
        equal = number = 0
        while number < arguments.kills:
            folder = Path(temporary, f"{number}-{instants.random()}")
            program = subprocess.Popen([sys.executable, __file__, "--folder", str(folder)])
            while not (folder / "checkpoints").exists():
                time.sleep(0.001)
            time.sleep(instants.uniform(0, 0.8) * whole_s)
            program.send_signal(signal.SIGKILL)
            if program.wait() != -signal.SIGKILL:
                continue  # it was faster and had ended; not a kill
            number += 1
            steps = sorted((folder / "checkpoints").iterdir())[-1].name
            same = torch.equal(run(folder), expected)
            equal += same
            print(f"kill {number}, newest checkpoint {steps}: weights {'equal' if same else 'DIFFER'}")
        print(f"{equal} of {arguments.kills} runs bitwise equal to the run never interrupted")
    sys.exit(equal != arguments.kills)


if __name__ == "__main__":
    main()
