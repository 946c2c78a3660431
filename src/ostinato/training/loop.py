"""The training loop. It sees a model with a `loss`, a source of batches and settings, and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import DivergenceError, InputError
from ostinato.training import divergence, events
from ostinato.training.distributed import Processes
from ostinato.training.history import COLUMNS, History, HistoryFile
from ostinato.training.memory import keep_freed_memory
from ostinato.training.optim import AveragedWeights, Schedule, make_optimizer, set_rate
from ostinato.training.randomness import determinism, kept_randomness, seed_all
from ostinato.training.resume import RunStore
from ostinato.training.settings import TrainingSettings
from ostinato.training.stopping import BestSoFar, Clock
from ostinato.training.tbptt import Backpropagation, Feed, as_source
from ostinato.types import Batch, TakesMaskKey

Validate = Callable[[nn.Module], dict[str, float]]


def train(
    model: nn.Module,
    source: Iterable[Batch],
    settings: TrainingSettings,
    *,
    validate: Validate | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    listeners: Sequence[events.Listener] = (),
    device: str | torch.device = "cpu",
    progress: str = "auto",
) -> History:
    """Train `model` in place on the batches of `source`; it ends in evaluation mode with its best weights.

    The loss of a step is the sum over all valid targets of its batches, in all processes, divided by their
    number; processes started by `torchrun` therefore do together what one would do with the whole batch.

    Args:
        model: has `loss(batch, state=None) -> LossOutput`; moved to `device`.
        source: each `iter` is one epoch of batches, or an endless stream. Resuming needs `state_dict` and
            `load_state_dict`, several processes need `set_share(rank, world_size)`; a list of batches needs
            neither.
        settings: every option, with its default.
        validate: called with the model in evaluation mode, without gradients, with the averaged weights where
            there are; returns metrics by name. It cannot disturb the random numbers of training. With several
            processes all call it, and the values of the first count.
        folder: where `history.csv` and `checkpoints/` go; None: nothing is written.
        resume: go on from the newest checkpoint in `folder`. Without a checkpoint the run starts afresh; a
            finished run changes nothing. On the CPU, with budgets in epochs or steps, the result is bitwise
            that of a run never interrupted.
        listeners: told what happens (`events.py`).
        device: `cpu`, `cuda`, `cuda:1`, `mps` or `auto`.
        progress: `auto` (a bar on a terminal, else lines), `bar`, `lines` or `quiet`; on standard error.

    Raises:
        InputError: settings that do not fit the model or source; an existing checkpoint without `resume`.
        DivergenceError: more than `max_bad_steps` bad steps in a row; names the step, the layer and the gate.
        RunFolderError: no checkpoint of the folder can be used, or it is of another run or a newer version.
        OstinatoError: a checkpoint could not be written.
    """
    clock = Clock(settings)
    processes = Processes(device, settings)
    watchers = [*listeners, *events.progress_listener(progress)] if processes.is_first else []
    keep_freed_memory()
    with kept_randomness(processes.device), determinism(settings.deterministic):
        run = _Run(model, source, settings, validate, folder, clock, processes, watchers)
        try:
            return run.train(resume)
        finally:
            for watcher in watchers:
                if isinstance(watcher, events.Closable):
                    watcher.close()


class _Run:
    """One run: everything that changes while it goes on. `RunStore` stores and restores it."""

    def __init__(
        self,
        model: nn.Module,
        source: Iterable[Batch],
        settings: TrainingSettings,
        validate: Validate | None,
        folder: str | Path | None,
        clock: Clock,
        processes: Processes,
        listeners: Sequence[events.Listener],
    ):
        _check(model, settings, validate)
        self.model, self.settings, self.validate = model, settings, validate
        self.clock, self.processes, self.listeners = clock, processes, listeners
        processes.fabric.to_device(model)
        processes.broadcast_model(model)
        self.feed = Feed(
            as_source(source, processes.rank, processes.world_size, needs_position=folder is not None),
            settings,
        )
        self.bptt = Backpropagation(settings)
        self.optimizer, self.schedule = make_optimizer(model, settings), Schedule(settings)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        averages = settings.averaging != "none"
        self.average = AveragedWeights(self.parameters, settings) if averages else None
        self.best, self.best_weights = BestSoFar(), {}  # type: BestSoFar, dict[str, Tensor]
        self.watch = divergence.Watch()
        self.history = History()
        self.store = RunStore(Path(folder), settings, processes) if folder is not None else None
        self.history_file: HistoryFile | None = None
        self.step = self.epoch = 0
        self.validated_at: int | None = None
        self.logged = [0.0, 0.0]
        self.rate = self.grad_norm = math.nan
        self.is_late = self.must_probe = False
        self._batches: list[Batch] = []
        # Collected once: walking the modules at each step would cost more than many a step.
        self._keyed = [module for module in model.modules() if isinstance(module, TakesMaskKey)]
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._every_parameter = list(model.parameters())

    def train(self, resume: bool) -> History:
        """The whole run."""
        s = self.settings
        self.model.train()
        self._clear_gradients()
        seed_all(s.seed, self.processes.rank)
        reason = self.store.begin(self, resume) if self.store else ""
        if reason:
            return self._finish(reason)
        self._notify(events.Started(s, self.step, self.epoch, self._steps_per_epoch(), self.clock.elapsed_s))
        if s.validate_first and self.step == 0 and self.validated_at is None:
            self._validate()
        self.is_late = not self.processes.all_agree(self.clock.fits("validation", "checkpoint"))
        reason = self._reason_to_stop()
        while not reason:
            step, epoch = self.step, self.epoch
            if self._step():
                self._log_and_validate_steps()
            else:
                self._end_epoch()
            reason = self._reason_to_stop()
            if self.store and not reason and self.watch.consecutive == 0:
                self.store.checkpoint_if_due(self, self.step > step, self.epoch > epoch)
        # Its time was kept; the margin is for what the last step took beyond its prediction.
        has_time = reason != "time" or self.clock.fits("validation", "checkpoint", margin=1.0)
        if self.processes.all_agree(has_time):
            self._validate()
        self._log()
        self.history.stopped = reason
        if self.store:
            self.store.write_last(self, reason)
        best = (self.best.value, self.best.step)
        self._notify(events.Ended(self.step, self.epoch, reason, *best, self.clock.elapsed_s))
        return self._finish(reason)

    def _step(self) -> bool:
        """One optimizer step over `accumulate` stretches; False where the epoch is over in all processes."""
        started_s = time.monotonic()
        s, processes = self.settings, self.processes
        buffers = [buffer.clone() for buffer in self._buffers]
        taken, total, count, reason = self._accumulate()
        # One message carries all that the processes must agree on.
        # Two steps: what is left of this one, and the next.
        fits, late_s = self.clock.fits("step", "step", "validation", "checkpoint"), s.max_time_s
        probes = (
            late_s is not None and not self.clock.knows("validation") and self.clock.elapsed_s > 0.2 * late_s
        )
        sums = processes.sum([taken, total, count, float(bool(reason)), float(not fits), float(probes)])
        taken, total, count, bad, late, probing = sums
        self.is_late, self.must_probe = late > 0, probing > 0
        if not taken:
            return False
        self.step += 1
        loss = total / count if count else math.nan
        if not bad and count and self.watch.explodes(loss, s):
            was = f"{self.watch.mean:.4g} ± {self.watch.spread:.2g}"
            bad, reason = 1.0, f"loss {loss:.4g} exploded; it was {was}"
        if not bad and count:
            reason = self._update(count)
            bad = float(bool(reason))
        if bad:
            self._skip(reason, buffers)
        elif count:
            self.watch.good(loss)
            self.logged[0] += total
            self.logged[1] += count
            if self.average is not None:
                self.average.update(self.step)
            if self.listeners:
                values = (loss, self.rate, self.grad_norm, self.clock.elapsed_s)
                self._notify(events.StepEnded(self.step, self.epoch, *values))
        self._clear_gradients()
        self.clock.took("step", time.monotonic() - started_s)
        return True

    def _accumulate(self) -> tuple[float, float, float, str]:
        """Forward and backward passes: stretches taken, summed loss, targets, and what was wrong."""
        taken, total, count, reason = 0.0, 0.0, 0.0, ""
        self._batches = []
        for _ in range(self.settings.accumulate):
            item = self.feed.next()
            if item is None:
                break
            if not taken:
                for module in self._keyed:
                    module.set_mask_key(self.settings.seed, self.step)
            taken += 1
            batch, begins = item
            # After a bad batch the others of the step are still taken, so that all processes stay aligned.
            if reason or not batch or batch.size == 0:
                continue
            batch = batch.to(self.processes.device)
            self._batches.append(batch)
            before = self.bptt.carried
            with self.processes.autocast():
                output = self.bptt.loss(self.model, batch, begins)
            value, targets = output.total.item(), float(output.count)
            if not math.isfinite(value):
                reason = self._explain(batch, begins, before)
                continue
            total += value
            count += targets
            if targets and output.total.requires_grad:
                self.processes.backward(output.total)
        return taken, total, count, reason

    def _explain(self, batch: Batch, begins: bool, carried: Any) -> str:
        """Run a stretch whose loss is not finite again, from the same carried state, and look where it
        begins."""
        replay = Backpropagation(self.settings)
        replay.carried = carried
        with kept_randomness(self.processes.device):
            return divergence.explain_loss(self.model, batch, lambda: replay.loss(self.model, batch, begins))

    def _update(self, count: float) -> str:
        """Divide the summed gradient by the number of targets, clip it, and step; what was wrong, or ""."""
        s = self.settings
        self.processes.sum_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return ""
        norm = torch.nn.utils.get_total_norm(gradients).item() / count
        if not math.isfinite(norm):
            return divergence.explain_gradient(self.model, self._batches)
        scale = 1.0 / count
        if s.clip_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ has it.
            scale *= min(1.0, s.clip_norm / (norm + 1e-6))
        if scale != 1.0:
            torch._foreach_mul_(gradients, scale)
        if s.clip_value is not None:
            torch._foreach_clamp_min_(gradients, -s.clip_value)
            torch._foreach_clamp_max_(gradients, s.clip_value)
        self.grad_norm = norm
        self.rate = set_rate(
            self.optimizer, self.schedule.factor(self.step - 1, self._epochs_done(), self.clock.elapsed_s)
        )
        self.optimizer.step()
        return ""

    def _skip(self, reason: str, buffers: list[Tensor]) -> None:
        """Leave weights, optimizer and buffers as they were; stop after too many skipped steps in a row."""
        reason = next(filter(None, map(bytes.decode, self.processes.gather_bytes(reason.encode()))), "")
        for buffer, before in zip(self._buffers, buffers, strict=True):
            buffer.copy_(before)
        # What a bad step leaves in the carried state would spoil every step after it.
        self.bptt.reset()
        self.watch.bad(self.step, reason)
        self._notify(events.StepSkipped(self.step, reason, self.watch.consecutive))
        if self.watch.consecutive > self.settings.max_bad_steps:
            last = self.store.checkpoints.last if self.store else None
            where = f"the last good checkpoint is {last}" if last else "there is no checkpoint"
            raise DivergenceError(
                f"training diverged: {self.watch.consecutive} steps in a row were skipped up to step "
                f"{self.step}; "
                f"it began at {self.watch.first_bad}; {where}; lower learning_rate or clip_norm, or look at "
                "the data"
            )

    def _log_and_validate_steps(self) -> None:
        s = self.settings
        if s.validate_every_steps and self.step % s.validate_every_steps == 0:
            self._validate()
        elif self.must_probe:
            # A time budget needs to know what a validation costs, before it is too late to run one.
            self._validate()
        if self.step % s.log_every_steps == 0:
            self._log()

    def _end_epoch(self) -> None:
        if self.feed.batches == 0 and not self.processes.sum([float(self.feed.batches)])[0]:
            raise InputError(
                f"the source yielded no batch in epoch {self.epoch + 1}; it must yield at least one, "
                "and start again at each iter()"
            )
        self.feed.begin_epoch()
        self.epoch += 1
        self.bptt.reset()
        every = self.settings.validate_every_epochs
        if every and self.epoch % every == 0:
            self._validate()

    def _validate(self) -> None:
        if self.validate is None or self.validated_at == self.step:
            return
        started_s = time.monotonic()
        if self.average is not None:
            self.average.swap()
        self.model.eval()
        with torch.no_grad(), kept_randomness(self.processes.device):
            metrics = {name: float(value) for name, value in self.validate(self.model).items()}
        metrics = dict(zip(metrics, self.processes.broadcast_values(list(metrics.values())), strict=True))
        is_best = self.best.update(metrics, self.step, self.settings)
        if is_best and self.settings.restore_best:
            self.best_weights = {
                name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()
            }
        self.model.train()
        if self.average is not None:
            self.average.swap()
        if self.settings.schedule == "plateau" and self.best.plateau_reached(
            self.settings.plateau_validations
        ):
            self.schedule.decays += 1
        self.validated_at = self.step
        self._log(metrics)
        self.clock.took("validation", time.monotonic() - started_s)
        # A step that no validation could follow any more would be for nothing.
        self.is_late = not self.processes.all_agree(self.clock.fits("step", "validation", "checkpoint"))
        self._notify(events.Validated(self.step, self.epoch, metrics, is_best, self.clock.elapsed_s))

    def _log(self, metrics: dict[str, float] | None = None) -> None:
        """A row of the history; of the same step as the last row, it completes that."""
        total, count = self.logged
        loss = total / count if count else math.nan
        values = (self.step, self.epoch, self.clock.elapsed_s, loss, self.rate, self.grad_norm)
        self.history.add(dict(zip(COLUMNS, values, strict=True)) | (metrics or {}))
        self.logged = [0.0, 0.0]
        if self.history_file is not None:
            self.history_file.write()

    def _reason_to_stop(self) -> str:
        s = self.settings
        if s.patience_validations and self.best.since >= s.patience_validations:
            return "patience"
        if s.steps and self.step >= s.steps:
            return "steps"
        if s.epochs and self.epoch >= s.epochs:
            return "epochs"
        return "time" if self.is_late else ""

    def _finish(self, reason: str) -> History:
        """Give the model its final weights, and the history its summary."""
        if self.best_weights:
            self.model.load_state_dict(self.best_weights)
        elif self.average is not None:
            self.average.swap()
        self._clear_gradients()
        self.model.eval()
        history = self.history
        history.stopped, history.steps, history.epochs = reason, self.step, self.epoch
        history.elapsed_s, history.skipped_steps = self.clock.elapsed_s, self.watch.skipped
        history.best, history.best_step = self.best.value, self.best.step
        return history

    def _epochs_done(self) -> float:
        """Epochs with their fraction, where the source has a length."""
        length = self.feed.length
        return self.epoch + (min(1.0, (self.feed.batches - 1) / length) if length else 0.0)

    def _steps_per_epoch(self) -> int | None:
        if self.feed.length is None or self.settings.tbptt_steps is not None:
            return None
        return math.ceil(self.feed.length / self.settings.accumulate)

    def _clear_gradients(self) -> None:
        for parameter in self._every_parameter:
            parameter.grad = None

    def _notify(self, event: events.Event) -> None:
        for listener in self.listeners:
            listener.notify(event)


def _check(model: nn.Module, settings: TrainingSettings, validate: Validate | None) -> None:
    if not isinstance(model, nn.Module) or not callable(getattr(model, "loss", None)):
        raise InputError(
            "model must be an nn.Module with loss(batch, state=None) -> LossOutput, got "
            f"{type(model).__name__}; "
            "add the method, or wrap the module in one that has it"
        )
    settings.check_budget(validates=validate is not None)
