"""Text out of a language model, a unit at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostinato.data.corpus_units import CorpusUnits, TextDecoder
from ostinato.errors import InputError
from ostinato.kernels import streaming
from ostinato.kernels.streaming import NativeStream
from ostinato.layers.streaming import parts_of
from ostinato.models import decoding
from ostinato.models.language import LanguageNetwork
from ostinato.types import State

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def stepper(network: LanguageNetwork, state: State) -> tuple[Step, Any]:
    """A step function for one text, and the state that it begins with.

    Where the layers have a native session, weights and state stay inside it: the state that goes round is
    then only a sign of the row, so that one such function is for one text.
    """
    layers: list[Any] = list(network.layers)
    like = network.embedding.weights[0]
    parts = [parts_of(layer) for layer in layers]
    found = next((reason or streaming.obstacle(own, like) for own, reason in parts if reason), None)
    found = found or next((streaming.obstacle(own, like) for own, _ in parts), None)
    if found is not None or len(network.embedding.weights) > 1:
        return _with_start_masked(network.step), state
    sessions = []
    for i, (layer, (own, _)) in enumerate(zip(layers, parts, strict=True)):
        session = NativeStream(own, 1, like, "float32")
        leaves: Any = layer._unstack_leaves(state[f"layer{i}"], 1, like)
        session.write_state([directions[0] for directions in leaves])
        sessions.append((session, like.new_empty(1, layer.output_size)))
    table, head = like.detach(), network.softmax
    projection = None if network.projection is None else network.projection.weight.detach().t()
    weight, bias = network.output_weight.detach().t(), head.biases[0].detach().clone()
    bias[0] = -torch.inf

    def step(tokens: Tensor, row: Any) -> tuple[Tensor, Any]:
        x = table[tokens]
        for session, y in sessions:
            if session.push(x, y) is None:
                session.push_checked(x.unsqueeze(1), y.unsqueeze(1))
            x = y
        if projection is not None:
            x = torch.mm(x, projection)
        return torch.addmm(bias, x, weight), row

    return step, torch.zeros(1)


def _with_start_masked(step: Step) -> Step:
    def masked(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = step(tokens, state)
        # The unknown unit has no text.
        logits[:, 0] = -torch.inf
        return logits, state

    return masked


@torch.no_grad()
def read_prompt(network: LanguageNetwork, ids: list[int]) -> State:
    """The state after all of a prompt but its last unit, which is read when the first new one is due."""
    network.eval()
    state = network.initial_state(1)
    device = next(network.parameters()).device
    before = torch.tensor([ids[:-1]], device=device)
    if before.shape[1]:
        _, state = network.encode(before, state)
    return state


def generated(
    network: LanguageNetwork,
    units: CorpusUnits,
    ids: list[int],
    *,
    length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    at_line_start: bool,
    after_blank: bool,
) -> Iterator[str]:
    """Pieces of text as they come; see `LanguageModel.stream`."""
    step, state = stepper(network, read_prompt(network, ids))
    device = next(network.parameters()).device
    # Made here, so that wrong arguments are refused before the first piece is asked for.
    tokens = decoding.stream(
        step, state, torch.tensor([ids[-1]], device=device), end=None, max_length=length, seed=seed,
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    return _decoded(tokens, units.decoder(at_line_start=at_line_start), after_blank=after_blank)


def _decoded(tokens: Iterator[int], decoder: TextDecoder, *, after_blank: bool) -> Iterator[str]:
    for token in tokens:
        piece = decoder.push(token)
        yield piece.removeprefix(" ") if after_blank else piece
        after_blank = after_blank and not piece
    yield decoder.finish()


def until(pieces: Iterator[str], stop: str | None) -> Iterator[str]:
    """The pieces up to the text `stop`, which is left out; what may be its beginning is held back."""
    if not stop:
        yield from pieces
        return
    held = ""
    for piece in pieces:
        held += piece
        at = held.find(stop)
        if at >= 0:
            yield held[:at]
            return
        keep = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if stop.startswith(held[-n:])), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def check_request(prompt: object, length: object, stop: object) -> None:
    """Raise InputError for what is no text, and where there is nothing to generate."""
    if not isinstance(prompt, str):
        raise InputError(f'prompt={prompt!r}: expected a text; "" is the beginning of a document')
    if stop is not None and not isinstance(stop, str):
        raise InputError(f"stop={stop!r}: expected a text, or None")
    if isinstance(length, (bool, float)) or not isinstance(length, (int, np.integer)) or length < 1:
        raise InputError(f"length={length!r}: expected a whole number of at least 1")
