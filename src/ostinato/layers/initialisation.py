"""How parameters start: torch's uniform, orthogonal, forget bias, chrono."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.errors import InputError
from ostinato.layers.options import check_choice, check_known

# Preset -> what it stands for. Orthogonal: Saxe et al. 2013 (arXiv:1312.6120); forget bias 1: Jozefowicz et
# al. 2015.
PRESETS: dict[str, dict[str, Any]] = {
    "torch": {},
    "orthogonal": {"input": "xavier", "recurrent": "orthogonal", "bias": "zeros", "forget_bias": 1.0},
}
_KNOWN = ("input", "recurrent", "bias", "forget_bias", "chrono")
_WEIGHTS = ("torch", "xavier", "orthogonal")
# Cells without `weight_hh`, and the cells whose biases `forget_bias` and `chrono` can set.
_LINEAR = ("mingru", "minlstm", "rglru")
_WITH_FORGET_GATE = ("lstm", "minlstm")
_WITH_GATES = ("lstm", "gru", "mingru", "minlstm")


def read_init(where: str, init: str | Mapping[str, Any], cell: str, *, bias: bool) -> dict[str, Any]:
    """What `init` asks for, with torch's uniform where it is silent.

    Args:
        where: begins error messages.
        init: a preset's name, or a mapping of `input` and `recurrent` (`torch`, `xavier`, `orthogonal`),
            `bias` (`torch`, `zeros`), `forget_bias` (a number; LSTM and MinLSTM) and `chrono` (the longest
            dependency in steps, arXiv:1804.11188; LSTM, GRU, MinLSTM, MinGRU).
        cell: its name in `reference.CELLS`.
        bias: whether the layer has biases, which `forget_bias` and `chrono` set.

    Raises:
        InputError: an unknown name, or one that this cell has no use for.
    """
    if isinstance(init, str):
        if init == "chrono":
            raise InputError(f"{where}: init='chrono' needs the longest dependency; pass {{'chrono': steps}}")
        check_choice(where, "init", init, PRESETS)
        asked = dict(PRESETS[init])
        if cell not in _WITH_FORGET_GATE or not bias:
            asked.pop("forget_bias", None)
    else:
        known = [name for name in _KNOWN if name != "recurrent" or cell not in _LINEAR]
        check_known(f"{where}: init", init, known)
        asked = dict(init)
    settings: dict[str, Any] = {"input": "torch", "recurrent": "torch", "bias": "torch", **asked}
    for name in ("input", "recurrent"):
        check_choice(f"{where}: init", name, settings[name], _WEIGHTS)
    check_choice(f"{where}: init", "bias", settings["bias"], ("torch", "zeros"))
    for name in ("forget_bias", "chrono"):
        if name in settings and not bias:
            raise InputError(f"{where}: init: {name} sets biases, and bias=False; leave one of them out")
    if "forget_bias" in settings and cell not in _WITH_FORGET_GATE:
        raise InputError(f"{where}: init: forget_bias is for LSTM and MinLSTM; this cell has no forget gate")
    if "chrono" in settings:
        if cell not in _WITH_GATES:
            raise InputError(
                f"{where}: init: chrono is for LSTM, GRU, MinLSTM and MinGRU; this cell has no gate whose "
                "bias sets how long it remembers"
            )
        if not settings["chrono"] > 2:
            raise InputError(f"{where}: init: chrono={settings['chrono']!r}, expected more than 2 steps")
    return settings


@torch.no_grad()
def initialise(
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    cell: str,
    hidden_size: int,
    *,
    is_coupled: bool,
) -> None:
    """Fill one direction of one layer; `tensors` under their names without the layer's suffix."""
    bound = 1 / math.sqrt(hidden_size)
    for name, tensor in tensors.items():
        kind = {"weight_ih": settings["input"], "weight_hh": settings["recurrent"]}.get(name, "torch")
        if name == "decay":
            # What an open recurrence gate keeps of the state: uniform in 0.9 … 0.999 (arXiv:2402.19427).
            kept = torch.empty_like(tensor).uniform_(0.9, 0.999)
            tensor.copy_(-torch.log(torch.expm1(-torch.log(kept) / 8)))
        elif name.startswith("norm"):
            nn.init.constant_(tensor, 1.0 if name.endswith("weight") else 0.0)
        elif name.startswith("bias") and settings["bias"] == "zeros":
            nn.init.zeros_(tensor)
        elif kind == "torch":
            nn.init.uniform_(tensor, -bound, bound)
        else:
            fill = nn.init.xavier_uniform_ if kind == "xavier" else nn.init.orthogonal_
            # Gate by gate: the blocks are separate maps that happen to be stored together.
            for block in tensor.split(hidden_size):
                fill(block)
    _initialise_memory(tensors, settings, cell, hidden_size, is_coupled=is_coupled)


def _initialise_memory(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], cell: str, H: int, *, is_coupled: bool
) -> None:
    if not {"forget_bias", "chrono"} & set(settings) or "bias_ih" not in tensors:
        return
    blocks = tensors["bias_ih"].split(H)

    def fill(gate: int, values: Tensor) -> None:
        blocks[gate].copy_(values)
        if "bias_hh" in tensors:
            tensors["bias_hh"].split(H)[gate].zero_()

    # Coupled gates have no forget gate of their own: f = 1 - i; in the minGRU 1 - z.
    is_coupled = is_coupled or cell == "mingru"
    if "forget_bias" in settings:
        gate, sign = (0, -1) if is_coupled else (1, 1)
        fill(gate, torch.full_like(blocks[gate], sign * settings["forget_bias"]))
    if "chrono" in settings:
        memory = torch.log(torch.empty_like(blocks[0]).uniform_(1, float(settings["chrono"]) - 1))
        if cell != "gru":
            fill(0, -memory)
        if not is_coupled:
            fill(1, memory)
