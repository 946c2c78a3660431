"""Cells as users write them, one step in torch operators: `Recurrent` beside a loop over that step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ostinato.bench.cases import SEED, Array, Case, Problem
from ostinato.bench.subjects import NAME, named_gradients, ours
from ostinato.bench.timing import Contestant
from ostinato.layers.cells import Cell
from ostinato.layers.recurrent import Recurrent
from ostinato.types import State

LOOP = "torch loop"


class IndRNN(Cell):
    """h' = relu(W x + u * h + b), every unit by itself in time (arXiv:1803.04831)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,)}
        self.input = nn.Linear(input_size, hidden_size)
        self.u = nn.Parameter(torch.empty(hidden_size).uniform_(-1.0, 1.0))

    def step(self, x_t: Tensor, state: State, *dt: Tensor) -> tuple[Tensor, State]:
        """One tick."""
        h = torch.relu(self.input(x_t) + self.u * state.h)
        return h, State(h=h)


class OwnLSTM(Cell):
    """The LSTM written out, which tells what the same cell costs when it is not ours."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,), "c": (hidden_size,)}
        self.input = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size)

    def step(self, x_t: Tensor, state: State, *dt: Tensor) -> tuple[Tensor, State]:
        """One tick."""
        i, f, g, o = (self.input(x_t) + self.recurrent(state.h)).chunk(4, -1)
        c = torch.sigmoid(f) * state.c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, State(h=h, c=c)


# Each with the built-in cell that it costs about as much as.
CELLS: dict[str, tuple[type[IndRNN] | type[OwnLSTM], str]] = {
    "own indrnn": (IndRNN, "rnn"),
    "own lstm": (OwnLSTM, "lstm"),
}


def draw(case: Case) -> Problem:
    """Random numbers, as `Problem.draw`."""
    rng = np.random.default_rng(SEED)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        cell = _cell(case)
    B, T, H = case.B, case.T, case.H
    return Problem(
        case,
        {name: value.detach().numpy() for name, value in cell.named_parameters()},
        normal(B, T, case.D),
        {name: 0.5 * normal(1, B, H) for name in cell.state_shapes},
        normal(B, T, H),
        {name: normal(1, B, H) for name in cell.state_shapes},
    )


def _cell(case: Case) -> IndRNN | OwnLSTM:
    return CELLS[case.cell][0](case.D, case.H)


def contestants(problem: Problem, threads: int, plain_name: str) -> Iterator[Contestant]:
    """Ours first; then the built-in cell of the same cost, and the loop."""
    yield _contestant(NAME, problem, torch.float32)
    case = problem.case
    plain = Case(case.grid, CELLS[case.cell][1], case.mode, case.H, case.B, case.T, case.D)
    yield ours(Problem.draw(plain), threads, name=plain_name)
    yield loop(problem)


def loop(problem: Problem, dtype: torch.dtype = torch.float32) -> Contestant:
    """`step` called for every step; in float64 the oracle."""
    return _contestant(LOOP, problem, dtype)


def _contestant(name: str, problem: Problem, dtype: torch.dtype) -> Contestant:
    case, is_training = problem.case, problem.case.mode == "training"
    cell = _cell(case).to(dtype)
    cell.load_state_dict({key: torch.tensor(value, dtype=dtype) for key, value in problem.parameters.items()})
    layer = Recurrent(cell).train(is_training)

    def leaf(value: Array) -> Tensor:
        return torch.tensor(value, dtype=dtype).requires_grad_(is_training)

    x = leaf(problem.x)
    first = {key: leaf(value[0]) for key, value in problem.state.items()}
    d_outputs = [
        torch.tensor(value, dtype=dtype) for value in (problem.d_y, *(d[0] for d in problem.d_state.values()))
    ]
    parameters = dict(cell.named_parameters())
    wanted = [x, *first.values(), *(parameters[key] for key in problem.parameters)]

    def by_layer() -> tuple[Tensor, dict[str, Tensor]]:
        y, after = layer(x, State({key: value[:, None, None] for key, value in first.items()}))
        return y, {key: after[key][:, 0, 0] for key in first}

    def by_loop() -> tuple[Tensor, dict[str, Tensor]]:
        state, ys = State(first), []
        for x_t in x.unbind(1):
            y, state = cell.step(x_t, state)
            ys.append(y)
        return torch.stack(ys, dim=1), {key: state[key] for key in first}  # type: ignore[misc]

    forward = by_loop if name == LOOP else by_layer

    def run() -> tuple[Tensor, dict[str, Tensor], Any]:
        with torch.inference_mode(not is_training):
            y, after = forward()
        gradients = torch.autograd.grad([y, *after.values()], wanted, d_outputs) if is_training else ()
        return y, after, gradients

    def results() -> dict[str, Array]:
        y, after, gradients = run()
        found = {"y": y.detach().numpy()}
        found |= {key: value.detach()[None].numpy() for key, value in after.items()}
        if gradients:
            named = named_gradients(problem, gradients)
            found |= {
                key: (value[None] if key.removeprefix("d_") in first else value).numpy()
                for key, value in named.items()
            }
        return found

    results()
    return Contestant(name, run, results, "a step at a time" if name == LOOP else layer.path)
