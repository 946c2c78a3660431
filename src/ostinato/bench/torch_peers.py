"""`torch.nn` as a contestant, in the form that is fastest for it: time-major, no graph in inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ostinato.bench.cases import Array, Problem
from ostinato.bench.subjects import after_steps, named_gradients
from ostinato.bench.timing import Contestant

NAME = "torch"
_LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


def version() -> str:
    """Of torch."""
    return str(torch.__version__)


def contestant(problem: Problem, threads: int, dtype: torch.dtype = torch.float32) -> Contestant | None:
    """`nn.LSTM` … over sequences, packed where lengths differ; the cells of `nn` for single steps.

    None where `torch.nn` has nothing for the case.
    """
    del threads  # torch's own setting
    if problem.case.options:
        return None
    return _cell(problem, dtype) if problem.case.mode == "step" else _layer(problem, dtype)


def _layer(problem: Problem, dtype: torch.dtype) -> Contestant:
    case = problem.case
    layer = _LAYERS[case.cell](case.D, case.H, case.layers, bidirectional=case.is_bidirectional, dtype=dtype)
    layer.load_state_dict(
        {name: torch.tensor(value, dtype=dtype) for name, value in problem.parameters.items()}
    )
    is_training = case.mode == "training"
    layer.train(is_training)

    def leaf(value: Array) -> Tensor:
        return torch.tensor(value, dtype=dtype).requires_grad_(is_training)

    x = leaf(_time_major(problem.x))
    state = [leaf(value) for value in problem.state.values()]
    hx = state[0] if len(state) == 1 else tuple(state)
    d_outputs = [torch.tensor(v, dtype=dtype) for v in (_time_major(problem.d_y), *problem.d_state.values())]
    wanted = [x, *state, *layer.parameters()]
    forward = _forward(layer, x, hx, problem)

    def inference() -> Any:
        with torch.inference_mode():
            return *forward(), ()

    def training() -> Any:
        y, after = forward()
        outputs = [y, *(after if isinstance(after, tuple) else (after,))]
        return y, after, torch.autograd.grad(outputs, wanted, d_outputs)

    run = training if is_training else inference

    def results() -> dict[str, Array]:
        y, after, gradients = run()
        leaves = after if isinstance(after, tuple) else (after,)
        found = {"y": y.detach().transpose(0, 1).numpy()}
        found |= {name: leaf.detach().numpy() for name, leaf in zip(problem.state, leaves, strict=True)}
        if gradients:
            named = named_gradients(problem, gradients)
            found |= {name: value.numpy() for name, value in named.items()}
            found["d_x"] = gradients[0].transpose(0, 1).numpy()
        return found

    return Contestant(NAME, run, results, "packed" if case.is_ragged else f"nn.{type(layer).__name__}")


def _time_major(array: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(array, 1, 0))


def _forward(layer: nn.RNNBase, x: Tensor, hx: Any, problem: Problem) -> Callable[[], Any]:
    if problem.lengths is None:
        return lambda: layer(x, hx)
    lengths = torch.from_numpy(problem.lengths)
    T = problem.case.T

    def packed() -> Any:
        y, after = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        return pad_packed_sequence(y, total_length=T)[0], after

    return packed


def _cell(problem: Problem, dtype: torch.dtype) -> Contestant:
    case = problem.case
    cell = _CELLS[case.cell](case.D, case.H, dtype=dtype)
    cell.load_state_dict(
        {
            name.removesuffix("_l0"): torch.tensor(value, dtype=dtype)
            for name, value in problem.parameters.items()
        }
    )
    frame = torch.tensor(problem.x[:, 0], dtype=dtype)
    first = [torch.tensor(leaf[0], dtype=dtype) for leaf in problem.state.values()]
    start: Any = first[0] if len(first) == 1 else tuple(first)
    now = [start]

    def call() -> None:
        with torch.inference_mode():
            now[0] = cell(frame, now[0])

    def leaves() -> dict[str, Any]:
        state = now[0] if isinstance(now[0], tuple) else (now[0],)
        return dict(zip(problem.state, state, strict=True))

    def results() -> dict[str, Array]:
        now[0] = start
        return after_steps(call, leaves, problem)

    return Contestant(NAME, call, results, f"nn.{type(cell).__name__}")
