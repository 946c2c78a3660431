"""What a checkpoint of a run holds, and how a run goes on from it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.errors import InputError, OstinatoError, RunFolderError
from ostinato.training import events
from ostinato.training.checkpoint import Checkpoints, pack, pack_optimizer, unpack, unpack_optimizer
from ostinato.training.distributed import Processes
from ostinato.training.history import HistoryFile, read_history
from ostinato.training.randomness import random_state, set_random_state
from ostinato.training.settings import TrainingSettings

if TYPE_CHECKING:
    from ostinato.training.loop import _Run

# These may change when a run goes on; the others decide about the numbers.
_MAY_CHANGE = frozenset(
    {
        "epochs",
        "steps",
        "max_time_s",
        "patience_validations",
        "max_bad_steps",
        "keep_checkpoints",
        "checkpoint_every_steps",
        "checkpoint_every_epochs",
        "checkpoint_every_s",
    }
)


class RunStore:
    """Stores a run in its folder and restores it: weights, averaged and best weights, optimizer, schedule,
    positions, random states and carried states of each process, and the place in history.csv."""

    def __init__(self, folder: Path, settings: TrainingSettings, processes: Processes):
        self.folder, self.settings, self.processes = folder, settings, processes
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep_checkpoints)
        self._written_s = time.monotonic()

    def begin(self, run: _Run, resume: bool) -> str:
        """Restore the newest checkpoint, or begin afresh; the reason why a finished run ended, else ""."""
        files, notes = self.checkpoints.read_newest()
        if files is not None and not resume:
            raise InputError(
                f"{self.folder} holds a run already ({self.checkpoints.last}); pass resume=True to go on "
                "with it, "
                "or choose another folder"
            )
        run.history.notes.extend(notes)
        reason = ""
        if files is not None:
            reason = self._restore(run, files)
        # Nobody writes before all have read.
        self.processes.wait()
        if self.processes.is_first and not reason:
            self.folder.mkdir(parents=True, exist_ok=True)
            run.history_file = HistoryFile(self.folder / "history.csv", run.history)
        # A first guess at the cost, for the time budget: six copies of the weights at 200 MB a second.
        size_bytes = sum(p.numel() * p.element_size() for p in run.parameters)
        run.clock.took("checkpoint", 0.02 + 6 * size_bytes / 200e6)
        self._written_s = time.monotonic()
        return reason

    def checkpoint_if_due(self, run: _Run, stepped: bool, ended_epoch: bool) -> None:
        """Write a checkpoint where an interval is over."""
        s = self.settings
        every_s = s.checkpoint_every_s
        is_due = bool(stepped and s.checkpoint_every_steps and run.step % s.checkpoint_every_steps == 0)
        is_due |= bool(
            ended_epoch and s.checkpoint_every_epochs and run.epoch % s.checkpoint_every_epochs == 0
        )
        if every_s is not None:
            is_due |= time.monotonic() - self._written_s >= every_s
            # The clocks of the processes differ.
            is_due = not self.processes.all_agree(not is_due)
        if is_due:
            self.write(run, "")

    def write_last(self, run: _Run, reason: str) -> None:
        """Write the rest of history.csv and the checkpoint that says that the run is finished."""
        if run.history_file is not None:
            run.history_file.write(all_rows=True)
        self.write(run, reason)

    def write(self, run: _Run, finished: str) -> None:
        """Write a checkpoint of the run as it stands between two steps.

        Raises:
            OstinatoError: it could not be written, in any process.
        """
        started_s = time.monotonic()
        ranks = self.processes.gather_bytes(_pack_rank(run))
        failure: OstinatoError | None = None
        if self.processes.is_first:
            try:
                if run.history_file is not None:
                    run.history_file.sync()
                path = self.checkpoints.write(run.step, _pack_run(run, finished, ranks))
                run.clock.took("checkpoint", time.monotonic() - started_s)
                run._notify(events.CheckpointWritten(run.step, path))
            except OstinatoError as error:
                failure = error
        self._written_s = time.monotonic()
        if not self.processes.all_agree(failure is None):
            raise failure or OstinatoError("the first process could not write a checkpoint; see its message")

    def _restore(self, run: _Run, files: dict[str, bytes]) -> str:
        _, values = unpack(files["run.safetensors"])
        self._check_settings(values)
        if values["processes"] != self.processes.world_size:
            raise InputError(
                f"{self.checkpoints.last} was written by {values['processes']} processes, resumed by "
                f"{self.processes.world_size}; start as many"
            )
        try:
            run.model.load_state_dict(unpack(files["model.safetensors"])[0])
        except RuntimeError as error:
            why = " ".join(str(error).split())  # one line of PyTorch's many
            raise RunFolderError(
                f"{self.checkpoints.last} is of another model than the one to train, as other data or "
                f"parameters make it; resume with the same, or choose another folder ({why[:200]})"
            ) from error
        unpack_optimizer(files["optimizer.safetensors"], run.optimizer)
        if run.average is not None:
            tensors, count = unpack(files["average.safetensors"])
            run.average.count = count
            for index, average in enumerate(run.average.average):
                average.copy_(tensors[f"{index:06d}"])
        if "best.safetensors" in files:
            run.best_weights = unpack(files["best.safetensors"])[0]
        for name, value in values["run"].items():
            setattr(run, name, value)
        for name, value in values["watch"].items():
            setattr(run.watch, name, value)
        run.best.load_state_dict(values["best"])
        run.schedule.decays = values["schedule_decays"]
        run.clock.before_s = values["elapsed_s"]
        self._restore_history(run, values["history"])
        _unpack_rank(run, files[f"rank-{self.processes.rank:04d}.safetensors"])
        return str(values["finished"]) if not self._is_extended(values) else ""

    def _restore_history(self, run: _Run, values: dict[str, Any]) -> None:
        notes, rows = run.history.notes, values["rows"]
        if rows:
            run.history = read_history(self.folder / "history.csv", tuple(values["columns"]))
            if len(run.history) < rows:
                raise RunFolderError(
                    f"{self.folder / 'history.csv'} has {len(run.history)} rows, the checkpoint says {rows}; "
                    "put the file back as it was, or remove the folder to start afresh"
                )
            run.history.truncate(rows)
        run.history.notes = notes
        if values["pending"]:
            run.history.add(values["pending"])

    def _check_settings(self, values: dict[str, Any]) -> None:
        stored, present = values["settings"], self.settings.to_mapping()
        names = [n for n in present if n not in _MAY_CHANGE and stored.get(n) != present[n]]
        if names:
            changes = ", ".join(f"{name} {stored.get(name)!r} → {present[name]!r}" for name in names)
            raise InputError(
                f"{self.folder}: the run was started with other settings ({changes}); resume with the same, "
                "or "
                "choose another folder"
            )

    def _is_extended(self, values: dict[str, Any]) -> bool:
        """Whether the budget that ended the stored run has grown since."""
        name = {"time": "max_time_s", "patience": "patience_validations"}.get(
            values["finished"], values["finished"]
        )
        if not name:
            return True
        now, then = getattr(self.settings, name), values["settings"][name]
        return now is None or bool(now > then)


def _pack_run(run: _Run, finished: str, ranks: list[bytes]) -> dict[str, bytes]:
    """The files of a checkpoint, by name."""
    history = run.history
    complete = len(history) if finished else max(len(history) - 1, 0)
    values = {
        "finished": finished,
        "settings": run.settings.to_mapping(),
        "processes": run.processes.world_size,
        "run": {
            name: getattr(run, name)
            for name in ("step", "epoch", "validated_at", "logged", "rate", "grad_norm")
        },
        "watch": asdict(run.watch),
        "best": run.best.state_dict(),
        "schedule_decays": run.schedule.decays,
        "elapsed_s": run.clock.elapsed_s,
        "history": {
            "rows": complete,
            "columns": history.columns,
            "pending": history.row(len(history) - 1) if len(history) > complete else None,
        },
    }
    files = {
        "run.safetensors": pack({}, values),
        "model.safetensors": pack(run.model.state_dict()),
        "optimizer.safetensors": pack_optimizer(run.optimizer),
    }
    if run.average is not None:
        average = {f"{index:06d}": value for index, value in enumerate(run.average.average)}
        files["average.safetensors"] = pack(average, run.average.count)
    if run.best_weights:
        files["best.safetensors"] = pack(run.best_weights)
    return files | {f"rank-{rank:04d}.safetensors": content for rank, content in enumerate(ranks)}


def _pack_rank(run: _Run) -> bytes:
    """What differs between processes: random states, position in the source, carried state."""
    randoms, random_values = random_state(run.processes.device)
    carried, carried_values = run.bptt.state_dict()
    values = {"random": random_values, "feed": run.feed.state_dict(), "bptt": carried_values}
    return pack(randoms | {f"bptt/{name}": value for name, value in carried.items()}, values)


def _unpack_rank(run: _Run, content: bytes) -> None:
    device = run.processes.device
    tensors, values = unpack(content)
    carried = {
        name.removeprefix("bptt/"): value.to(device)
        for name, value in tensors.items()
        if name.startswith("bptt/")
    }
    run.bptt.load_state_dict(carried, values["bptt"])
    run.feed.load_state_dict(values["feed"])
    # Last: reading a batch again may have drawn random numbers.
    set_random_state(tensors, values["random"], device)
