"""Linear recurrences on a GPU: right, and as fast as memory?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ostinato.bench.gpu_cases import SEED, GpuCase
from ostinato.bench.gpu_problems import DTYPES
from ostinato.kernels import scan, scan_operators
from ostinato.kernels.reference import CELLS
from ostinato.kernels.scan import Given, Rule

COPY = "copy"


@dataclass
class Scan:
    """A scan with gradients of what it gives."""

    rule: Rule
    given: Given
    d_y: Tensor
    d_state: Tensor

    @property
    def wanted(self) -> list[Tensor]:
        """What gradients are taken of."""
        return [value for value in self.given.differentiable if value is not None]

    def forward(self) -> Tensor:
        """y without a graph."""
        with torch.no_grad():
            return scan_operators.run(self.rule, self.given)[0]

    def training(self) -> tuple[Tensor, ...]:
        """All gradients."""
        return torch.autograd.grad(
            scan_operators.run(self.rule, self.given), self.wanted, (self.d_y, self.d_state)
        )

    def results(self, run: Callable[..., Any] = scan_operators.run) -> dict[str, Tensor]:
        """y, the final state and all gradients, by name."""
        y, state = run(self.rule, self.given)
        gradients = torch.autograd.grad((y, state), self.wanted, (self.d_y, self.d_state))
        named = {f"d_{number}": value for number, value in enumerate(gradients)}
        return {"y": y.detach(), "state": state.detach(), **named}

    def in_float64(self) -> Scan:
        """The same values in float64."""
        given = self.given.with_differentiable(
            [
                value if value is None else _leaf(value.detach().double())
                for value in self.given.differentiable
            ]
        )
        return Scan(self.rule, given, self.d_y.double(), self.d_state.double())

    def path(self) -> str:
        """Whose kernels take it."""
        device = "triton" if self.given.start.is_cuda else "native"
        why = scan.obstacle(self.given.start, device)
        return device if why is None else f"torch steps: {why}"

    def moved_bytes(self, mode: str) -> int:
        """What must go through memory at least: each number once in each pass that has a use for it."""
        inputs = sum(value.numel() for value in self.given.inputs)
        one = self.d_y.numel()
        # Forward reads the inputs and writes y; backward reads inputs, y and d_y and writes d_inputs.
        numbers = inputs + one if mode == "forward" else 3 * inputs + 3 * one
        return numbers * self.d_y.element_size()


def draw(case: GpuCase, device: torch.device) -> Scan:
    """The scan of a case: `linear`, or the gates of a cell in one pass with it."""
    dtype = DTYPES[case.precision]
    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    B, T, H = case.B, case.T, case.H
    decay = mask = resets = initial = None
    wide = torch.float32 if case.cell != "linear" else dtype
    if case.cell == "linear":
        inputs = [torch.sigmoid(normal(B, T, H)), normal(B, T, H)]
    else:
        inputs = [normal(B, T, CELLS[case.cell].gates * H)]
        if case.cell == "rglru":
            decay = _leaf(normal(H, dtype=wide) + 4)
    if case.is_ragged:
        lengths = torch.randint(1, T + 1, (B,), generator=generator)
        mask = (torch.arange(T) < lengths.unsqueeze(1)).to(device)
    if case.has_resets:
        resets = (torch.rand(B, T, generator=generator) < 0.05).to(device)
        initial = _leaf(normal(B, H, dtype=wide))
    given = Given(
        [_leaf(value) for value in inputs], _leaf(normal(B, H, dtype=wide)), decay, initial, mask, resets
    )
    return Scan(Rule(case.cell), given, normal(B, T, H), normal(B, H, dtype=wide))


def _leaf(value: Tensor) -> Tensor:
    return value.contiguous().requires_grad_()


def copier(n_bytes: int, device: torch.device) -> Callable[[], Tensor]:
    """Copies on the device so that so many bytes are read or written in all."""
    source = torch.empty(max(1, n_bytes // 8), dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
