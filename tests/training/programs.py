"""Models and runs that the training tests share; also run as a program, to be killed or by torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from ostinato.errors import InputError
from ostinato.training.loop import train
from ostinato.training.settings import TrainingSettings
from ostinato.training.tbptt import BatchList
from ostinato.types import Batch, LossOutput


class Net(nn.Module):
    """A recurrent layer, dropout and a regression head; the loss counts the steps within length."""

    def __init__(self, cell=nn.GRU, dropout=0.3, dtype=torch.float32, seed=5):
        super().__init__()
        torch.manual_seed(seed)
        self.rnn = cell(3, 7, batch_first=True, dtype=dtype)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(7, 1, dtype=dtype)

    def loss(self, batch, state=None):
        y, state = self.rnn(batch["x"], state)
        error = (self.out(self.drop(y)).squeeze(-1) - batch["y"]) ** 2
        if "lengths" in batch:
            valid = torch.arange(error.shape[1]) < batch["lengths"][:, None]
        else:
            valid = torch.ones_like(error, dtype=torch.bool)
        return LossOutput(error.masked_fill(~valid, 0.0).sum(), valid.sum(), state)


def batches(n=5, B=4, T=11, *, ragged=False, dtype=torch.float32, seed=3):
    """`n` batches; the last is smaller, and ragged ones hold rows of length 0."""
    g = torch.Generator().manual_seed(seed)
    result = []
    for index in range(n):
        rows = B if index < n - 1 else max(1, B - 1)
        x = torch.randn(rows, T, 3, generator=g, dtype=dtype)
        batch = Batch(
            x=x, y=x.sum(-1).cumsum(1).tanh() + 0.1 * torch.randn(rows, T, generator=g, dtype=dtype)
        )
        if ragged:
            batch["lengths"] = torch.randint(0, T + 1, (rows,), generator=g)
            batch["lengths"][0] = T
        result.append(batch)
    return result


RESUMABLE = {
    "plain": {"schedule": "cosine", "averaging": "ema"},
    "accumulate": {"accumulate": 2, "optimizer": "sgd", "optimizer_options": {"momentum": 0.9}},
    "tbptt": {"tbptt_steps": 4, "averaging": "swa", "schedule": "plateau", "plateau_validations": 1},
    "carried": {"tbptt_steps": 3, "carry_state": True, "schedule": "one_cycle", "optimizer": "adamw"},
    "k2_beyond_k1": {"tbptt_steps": 2, "tbptt_backward_steps": 6, "carry_state": True},
    "k2_below_k1": {"tbptt_steps": 5, "tbptt_backward_steps": 2, "optimizer": "rmsprop"},
}


def settings(kind: str, **changes) -> TrainingSettings:
    """A resumable run: a few epochs with validations, logs and checkpoints at odd intervals."""
    base = {
        "epochs": 3,
        "validate_every_steps": 4,
        "log_every_steps": 3,
        "checkpoint_every_steps": 5,
        "checkpoint_every_s": None,
        "validate_first": True,
        "warmup_steps": 2,
        "min_delta": 0.01,
    }
    return TrainingSettings(**{**base, **RESUMABLE[kind], **changes})


def validate(model):
    """The mean loss on other data; draws random numbers, which must not disturb the training."""
    torch.rand(3)
    output = model.loss(batches(1, seed=9)[0])
    return {"loss": float(output.total / output.count)}


def run(kind, folder, *, listeners=(), resume=True, n=5, dropout=0.3, **changes):
    """Train the resumable run `kind`; the model and its history."""
    model = Net(dropout=dropout)
    data = batches(n)
    if settings(kind, **changes).carry_state:
        data = data[:-1]
    history = train(
        model,
        BatchList(data),
        settings(kind, **changes),
        validate=validate,
        folder=folder,
        resume=resume,
        listeners=listeners,
        progress="quiet",
    )
    return model, history


class Slow:
    """A listener that says where the run is, and gives a killer time."""

    def __init__(self, path: Path, pause_s: float):
        self.path, self.pause_s = path, pause_s

    def notify(self, event):
        import time

        if type(event).__name__ == "StepEnded":
            time.sleep(self.pause_s)
            self.path.write_text(str(event.step))


def two_processes(folder: Path) -> None:
    """What each of several processes does; the first writes the weights of each case."""
    from safetensors.torch import save_file

    for name, (dtype, changes) in CASES.items():
        model = Net(dropout=0.0, dtype=dtype)
        history = train(
            model,
            [*batches(6, B=3, ragged=True, dtype=dtype), *batches(1, B=1, ragged=True, dtype=dtype)],
            TrainingSettings(steps=100, log_every_steps=1, learning_rate=1e-2, **changes),
            folder=folder / f"run-{name}",
            progress="quiet",
        )
        if os.environ.get("RANK", "0") == "0":
            save_file(
                {
                    **model.state_dict(),
                    "losses": torch.tensor(history["train_loss"], dtype=torch.float64),
                    "norms": torch.tensor(history["grad_norm"], dtype=torch.float64),
                },
                folder / f"{name}.safetensors",
            )


class Skipped:
    """A listener that keeps the bad steps."""

    def __init__(self):
        self.events = []

    def notify(self, event):
        if type(event).__name__ == "StepSkipped":
            self.events.append(event)


def special_cases(folder: Path) -> None:
    """In two processes: stop and go on, a bad row in one of them, a source that cannot be shared."""
    changes = {"schedule": "constant", "validate_first": False}
    whole, _ = run("carried", folder / "whole", steps=44, **changes)
    run("carried", folder / "part", steps=7, **changes)
    resumed, _ = run("carried", folder / "part", steps=44, **changes)
    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    data = batches(4)
    data[2]["x"][1, 3, 0] = float("nan")
    skipped = Skipped()
    history = train(Net(dropout=0.0), data, TrainingSettings(epochs=1), listeners=[skipped], progress="quiet")
    lines = [f"resumed equal {same}", f"skipped {history.skipped_steps}"]
    lines += [f"{event.step}: {event.reason}" for event in skipped.events]
    try:
        train(Net(), iter(data), TrainingSettings(epochs=1), progress="quiet")
    except InputError as error:
        lines.append(str(error))
    (folder / f"special-{os.environ['RANK']}.txt").write_text("\n".join(lines))


CASES = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "sgd_accumulated": (torch.float64, {"optimizer": "sgd", "accumulate": 2, "weight_decay": 0.01}),
    "tbptt": (torch.float64, {"tbptt_steps": 4}),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "two_processes":
        two_processes(where)
        special_cases(where)
    else:
        run(what, where / "run", listeners=[Slow(where / "step", 0.004)], epochs=12)
