"""Processes and devices, through Lightning Fabric: where to run, who else runs, and sums over all of them.

Gradients are summed here rather than by `DistributedDataParallel`: it averages over processes while each
backward runs, but the loop divides by the *global number of valid targets*, known only after the last batch
of an accumulated step, and a process may have no row at all in a batch.
"""

from __future__ import annotations

import atexit
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.training.settings import TrainingSettings


def is_first_process() -> bool:
    """Whether this process writes files and speaks: the only one, or rank 0 of those started by torchrun."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def _leave_group() -> None:
    # A process that ends while the group's threads are alive may abort.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """This process among those that `torchrun` started (or alone).

    Args:
        device: `cpu`, `cuda`, `cuda:1`, `mps` or `auto`.
        settings: for the precision.

    Raises:
        InputError: a device that is not there.
    """

    def __init__(self, device: str | torch.device, settings: TrainingSettings):
        accelerator, index = _device_parts(str(device))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        world = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        options: dict[str, Any] = {"devices": [int(index)] if index else 1}
        if world > 1:
            if index:
                raise InputError(
                    f"device {str(device)!r}: under torchrun every process takes the device of its local "
                    "rank; "
                    f"pass {accelerator!r}"
                )
            backend = "gloo" if accelerator == "cpu" else None
            strategy = DDPStrategy(process_group_backend=backend)
            options = {"devices": local, "num_nodes": world // local, "strategy": strategy}
        try:
            self.fabric = Fabric(
                accelerator=accelerator,
                precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
                **options,
            )
        except (ValueError, RuntimeError) as error:  # Fabric's own classes for a device that is missing
            raise InputError(
                f"device {str(device)!r} cannot be used: {error}; use 'cpu' or 'auto'"
            ) from error
        self.fabric.launch()
        if world > 1:
            atexit.unregister(_leave_group)
            atexit.register(_leave_group)
        self.device = self.fabric.device
        self.rank, self.world_size = self.fabric.global_rank, self.fabric.world_size
        self._autocasts = settings.precision == "bf16"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of the forward pass; nothing where the weights' own dtype is used."""
        return self.fabric.autocast() if self._autocasts else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a scalar."""
        self.fabric.backward(loss)

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all processes, in float64."""
        if self.world_size == 1:
            return values
        # MPS has no float64; gloo and NCCL sum on the device of the tensor.
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    @torch.no_grad()
    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum the gradients over all processes in place: one message per dtype.

        A parameter that has a gradient in any process gets one in all; one that has none anywhere keeps None.
        """
        if self.world_size == 1:
            return
        present = self.sum([float(parameter.grad is not None) for parameter in parameters])
        used = [p for p, count in zip(parameters, present, strict=True) if count]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in dict.fromkeys(parameter.dtype for parameter in used):
            grads = [p.grad for p in used if p.dtype == dtype and p.grad is not None]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            torch.distributed.all_reduce(flat)
            parts = flat.split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [p.view_as(g) for p, g in zip(parts, grads, strict=True)])

    @torch.no_grad()
    def broadcast_model(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        if self.world_size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                torch.distributed.broadcast(tensor.detach(), 0)

    def broadcast_values(self, values: list[float]) -> list[float]:
        """The values of the first process, in all."""
        return self.sum(values if self.is_first else [0.0] * len(values))

    def all_agree(self, is_true: bool) -> bool:
        """Whether it is true in every process."""
        return self.sum([float(not is_true)])[0] == 0

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """The content of every process, in all of them, by rank; tensors only, nothing is unpickled."""
        if self.world_size == 1:
            return [content]
        lengths = self.sum([float(len(content)) if r == self.rank else 0.0 for r in range(self.world_size)])
        own = torch.zeros(int(max(lengths)), dtype=torch.uint8, device=self.device)
        if content:
            own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, own)
        return [bytes(part[: int(length)].cpu().numpy()) for part, length in zip(parts, lengths, strict=True)]

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.world_size > 1:
            torch.distributed.barrier()


def find_device(name: str) -> torch.device:
    """The device for a forward pass that `cpu`, `cuda`, `cuda:1`, `mps` or `auto` names.

    Raises:
        InputError: another name, or a device that is not there.
    """
    kind, _ = _device_parts(name)
    if kind == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None and found.type in _DEVICES else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without it
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {name!r} cannot be used: {reason}; use 'cpu' or 'auto'") from error


_DEVICES = ("cpu", "cuda", "mps", "auto")


def _device_parts(name: str) -> tuple[str, str]:
    kind, colon, index = name.partition(":")
    is_number = not colon or (index.isascii() and index.isdecimal() and kind in ("cuda", "mps", "cpu"))
    if kind not in _DEVICES or not is_number:
        raise InputError(f"device is {name!r}; known: cpu, cuda, cuda:1, mps, auto")
    return kind, index
