"""Law 5 for the Triton kernels, in Triton's interpreter: outputs and all gradients equal the plain steps'.

`test_triton_recurrent.py` runs this file in processes of its own, in which Triton interprets.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ostinato.kernels import recurrence, reference, triton_recurrent
from ostinato.kernels.reference import CellOptions
from ostinato.kernels.task import Arguments, Task, Upstream

KINDS = {
    "rnn": ("rnn", {}),
    "rnn-relu": ("rnn", {"nonlinearity": "relu"}),
    "rnn-zoneout-random": ("rnn", {"zoneout": {"h": 0.3}, "training": True}),
    "lstm": ("lstm", {}),
    "lstm-peephole": ("lstm", {"peephole": True}),
    "lstm-coupled": ("lstm", {"coupled_gates": True}),
    "lstm-coupled-peephole": ("lstm", {"coupled_gates": True, "peephole": True}),
    "lstm-zoneout": ("lstm", {"zoneout": {"h": 0.3, "c": 0.2}}),
    "lstm-zoneout-random": ("lstm", {"zoneout": {"h": 0.3, "c": 0.2}, "training": True}),
    "gru": ("gru", {}),
    "rnn-norm": ("rnn", {"norm": True}),
    "lstm-norm": ("lstm", {"norm": True}),
    "lstm-norm-everything": (
        "lstm",
        {"norm": True, "peephole": True, "zoneout": {"h": 0.3, "c": 0.2}, "training": True},
    ),
    "lstm-norm-coupled": ("lstm", {"norm": True, "coupled_gates": True, "zoneout": {"c": 0.2}}),
    "gru-norm": ("gru", {"norm": True}),
    "gru-before": ("gru", {"reset_after": False}),
    "gru-before-norm-zoneout": ("gru", {"reset_after": False, "norm": True, "zoneout": {"h": 0.2}}),
    "gru-zoneout": ("gru", {"zoneout": {"h": 0.3}}),
    "gru-zoneout-random": ("gru", {"zoneout": {"h": 0.3}, "training": True}),
}
# Cells that need all units of a row within a step.
WHOLE_ROWS = [kind for kind in KINDS if "norm" in kind or "before" in kind]
TOLERANCE = 2e-5


def make(
    kind: str, words: str, B: int, T: int, D: int, H: int, keeps: str = "gates"
) -> tuple[Task, Arguments]:
    """A task and its arguments in float64; `words` are lengths, holes, empty, resets, dropout, dropout-steps,
    reverse, cells, no-bias."""
    cell, changes = KINDS[kind]
    options, spec, has = CellOptions(**changes), reference.CELLS[cell], set(words.split())

    def tensors(shapes, scale):
        return [torch.randn(shape, dtype=torch.float64) * scale for shape in shapes]

    mask = resets = None
    if "lengths" in has:
        mask = torch.arange(T) < torch.randint(0, T + 1, (B, 1))
    if "holes" in has:
        mask = torch.rand(B, T) < 0.6
    if "empty" in has:
        mask = torch.zeros(B, T, dtype=torch.bool)
    if "resets" in has:
        resets = torch.rand(B, T) < 0.4
    noise: list[Tensor | None] = [None, None, None]
    if "dropout" in has or "dropout-steps" in has:
        noise[0] = (torch.rand(1 if "dropout" in has else T, B, H, dtype=torch.float64) < 0.7) / 0.7
    if options.training:
        noise[1] = torch.rand(T, B, H) < 0.3
        noise[2] = torch.rand(T, B, H) < 0.3 if "c" in options.zoneout else None
    state = [(B, H) for _ in spec.leaves]
    shapes = spec.parameter_shapes(D, H, options, "no-bias" not in has).values()
    x = torch.randn(B, T, D, dtype=torch.float64)
    if mask is not None:
        x[~mask] = float("nan")
    given = Arguments(
        x, tensors(state, 0.7), tensors(state, 0.7) if resets is not None else [],
        tensors(shapes, 1 / max(D, H) ** 0.5), mask, resets, noise,
    )  # fmt: skip
    return Task(cell, options, "reverse" in has, "cells" in has and cell == "lstm", keeps), given


def to(given: Arguments, dtype: torch.dtype) -> Arguments:
    """The same as leaves of another dtype."""
    tensors = [one.to(dtype).detach().requires_grad_() for one in recurrence.tensors_of(given)]
    noise = [one.to(dtype) if one is not None and one.is_floating_point() else one for one in given.noise]
    return recurrence.with_tensors(given, tensors)._replace(noise=noise)


def expected(task: Task, given: Arguments) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, gradients of them, and those of everything that went in, by the plain steps in float64."""
    outputs = recurrence.run_steps(task, given)
    grads = [torch.randn(one.shape, dtype=torch.float64) for one in outputs]
    found = torch.autograd.grad(
        outputs, recurrence.tensors_of(given), grads, allow_unused=True, materialize_grads=True
    )
    return [one.detach() for one in outputs], grads, list(found)


def upstream_of(task: Task, grads: list[Tensor]) -> Upstream:
    d_y, *d_final = (one.float() for one in grads)
    return Upstream(
        d_y, d_final[: len(d_final) - task.returns_cells], d_final[-1] if task.returns_cells else None
    )


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest error over largest value; infinite where anything is not finite."""
    errors = [0.0]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        if other.numel():
            difference = (one.double() - other).abs().max() / other.abs().max().clamp(min=1e-30)
            errors.append(float(difference) if bool(one.isfinite().all()) else float("inf"))
    return max(errors)


def check(
    kind: str, words: str, only: str | None, B: int, T: int, D: int, H: int, keeps: str = "gates"
) -> None:
    task, given = make(kind, words, B, T, D, H, keeps)
    outputs, grads, wanted = expected(task, to(given, torch.float64))
    given = to(given, torch.float32)
    assert triton_recurrent.obstacle(task, given.x) is None
    found, saved = triton_recurrent.forward(task, given, only=only)
    shapes = triton_recurrent.saved_shapes(task, B, T, D, H, torch.float32)
    assert [(tuple(one.shape), one.dtype) for one in saved] == shapes
    assert error(found, outputs) < TOLERANCE
    d_x, d_state, d_initial, d_weights = triton_recurrent.backward(
        task, given, saved, found[0], upstream_of(task, grads), only=only
    )
    assert error([d_x, *d_state, *d_initial, *d_weights], wanted) < TOLERANCE
    found, saved = triton_recurrent.forward(task._replace(keeps="nothing"), given, only=only)
    assert not saved
    assert error(found, outputs) < TOLERANCE


@pytest.mark.parametrize(
    "words", ["", "holes resets reverse dropout-steps cells", "lengths no-bias", "empty resets"]
)
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_solo(cell, words):
    check(cell, words, "solo", B=3, T=4, D=5, H=17)


@pytest.mark.parametrize(("B", "T", "D", "H"), [(1, 1, 1, 1), (17, 2, 1, 3), (1, 5, 33, 33)])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_solo_at_odd_sizes(cell, B, T, D, H):
    check(cell, "resets reverse lengths", "solo", B, T, D, H)


@pytest.mark.parametrize("words", ["", "holes resets reverse dropout"])
@pytest.mark.parametrize(("cell", "H"), [("rnn", 65), ("lstm", 33), ("gru", 33)])
def test_group(cell, H, words):
    """Several thread blocks, one launch a step: all of the group's arithmetic but for its barrier."""
    check(cell, words, "group", B=3, T=3, D=5, H=H)


@pytest.mark.parametrize("words", ["", "holes resets reverse dropout-steps cells"])
@pytest.mark.parametrize(("cell", "H"), [("rnn", 65), ("lstm", 17), ("gru", 17)])
def test_step(cell, H, words):
    check(cell, words, "step", B=3, T=3, D=5, H=H)


OPTIONS = [(kind, "resets cells") for kind in KINDS if "-" in kind]
# Where norms are all that differs, dropout of h is the same as elsewhere.
OPTIONS += [(kind, "reverse holes dropout") for kind in KINDS if "-" in kind and not kind.endswith("norm")]


@pytest.mark.parametrize(("kind", "words"), OPTIONS)
def test_options(kind, words):
    check(kind, words, "solo", B=3, T=3, D=5, H=9)


@pytest.mark.parametrize("kind", WHOLE_ROWS)
def test_options_by_rows(kind, monkeypatch):
    """Products by torch, and launches over whole rows between them: one row, and a tile that is not full."""
    cut, is_tile = triton_recurrent.plan_of, kind.endswith("norm")
    if is_tile:
        monkeypatch.setattr(triton_recurrent, "plan_of", lambda *asked: cut(*asked)._replace(N=2))
    words = "lengths no-bias" if is_tile else "holes resets reverse dropout-steps cells"
    check(kind, words, "step", B=3 if is_tile else 2, T=3, D=5, H=17)


@pytest.mark.parametrize("kind", ["lstm-coupled-peephole", "lstm-peephole", "gru-zoneout-random"])
def test_options_of_groups(kind):
    check(kind, "resets lengths", "group", B=2, T=3, D=3, H=18)


@pytest.mark.parametrize("words", ["dropout resets reverse", "holes dropout-steps"])
@pytest.mark.parametrize("kind", ["rnn-relu", "lstm", "gru"])
def test_gates_are_computed_again(kind, words):
    check(kind, words, "solo", B=3, T=4, D=5, H=9, keeps="outputs")


@pytest.mark.parametrize(
    ("kind", "only", "H"),
    [("lstm", "solo", 9), ("gru", "group", 18), ("rnn", "step", 9), ("gru-before-norm-zoneout", "step", 9)],
)
def test_two_directions_in_one_launch(kind, only, H):
    calls = [make(kind, words, 3, 3, 5, H) for words in ("", "reverse")]
    mask, resets = torch.rand(3, 3) < 0.7, torch.rand(3, 3) < 0.3
    initial = [torch.randn(3, H, dtype=torch.float64) for _ in reference.CELLS[KINDS[kind][0]].leaves]
    x = calls[0][1].x
    tasks = [task for task, _ in calls]
    givens = [given._replace(x=x, mask=mask, resets=resets, initial=initial) for _, given in calls]
    wanted = [expected(task, to(given, torch.float64)) for task, given in zip(tasks, givens, strict=True)]
    singles = [to(given, torch.float32) for given in givens]
    singles[1] = singles[1]._replace(x=singles[0].x)
    found, saved = triton_recurrent.forward_directions(tasks, singles, only=only)
    for one, (outputs, _, _) in zip(found, wanted, strict=True):
        assert error(one, outputs) < TOLERANCE
    upstreams = [upstream_of(task, grads) for task, (_, grads, _) in zip(tasks, wanted, strict=True)]
    d_x, rest = triton_recurrent.backward_directions(tasks, singles, saved, upstreams, only=only)
    assert error([d_x], [sum(grads[0] for _, _, grads in wanted)]) < TOLERANCE
    for (d_state, d_initial, d_weights), (_, _, grads) in zip(rest, wanted, strict=True):
        assert error([*d_state, *d_initial, *d_weights], grads[1:]) < TOLERANCE


@pytest.mark.parametrize("B", [0, 2])
def test_no_step(B):
    task, given = make("lstm", "", B, 0 if B else 3, 5, 4)
    given = to(given, torch.float32)
    found, saved = triton_recurrent.forward(task, given)
    assert [tuple(one.shape) for one in found] == [(B, given.x.shape[1], 4), (B, 4), (B, 4)]
    d_x, d_state, d_initial, d_weights = triton_recurrent.backward(
        task, given, saved, found[0], Upstream(None, [torch.ones(B, 4), None], None)
    )
    assert bool((d_state[0] == 1).all())
    assert bool((d_state[1] == 0).all())
    assert not d_initial
    assert d_x.shape == given.x.shape
    assert [one.shape for one in d_weights] == [one.shape for one in given.weights]


def test_nothing_comes_from_upstream():
    task, given = make("gru", "", 2, 2, 3, 4)
    given = to(given, torch.float32)
    found, saved = triton_recurrent.forward(task, given)
    grads = triton_recurrent.backward(task, given, saved, found[0], Upstream(None, [None], None))
    assert all(bool((one == 0).all()) for one in (grads[0], *grads[1], *grads[3]))


@pytest.mark.parametrize("kind", ["lstm", "gru", "lstm-norm"])
def test_half_precision(kind):
    """float16 in, float32 state kept: as under autocast."""
    task, given = make(kind, "resets", 3, 4, 5, 9)
    outputs, grads, wanted = expected(task, to(given, torch.float64))
    half = to(given, torch.float16)
    half = half._replace(
        state=[one.float() for one in half.state], initial=[one.float() for one in half.initial]
    )
    found, saved = triton_recurrent.forward(task, half)
    assert [one.dtype for one in found] == [torch.float16] + [torch.float32] * len(half.state)
    assert error(found, outputs) < 5e-3
    up = upstream_of(task, grads)
    d_x, d_state, d_initial, d_weights = triton_recurrent.backward(
        task, half, saved, found[0], up._replace(y=up.y.half())
    )
    assert (d_x.dtype, d_state[0].dtype) == (torch.float16, torch.float32)
    assert error([d_x, *d_state, *d_initial, *d_weights], wanted) < 2e-2
