"""The diagonal linear recurrence h' = keep · h + add: ours, a loop of operators, JAX's parallel scan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostinato.bench.cases import SEED, Array, Case, Problem
from ostinato.bench.subjects import NAME, named_gradients
from ostinato.bench.timing import Contestant
from ostinato.layers.linear import linear_scan

LOOP = "torch loop"
# Arrays of B·T·H numbers that go through memory: keep, add and y; in backward keep, y, d_y, d_keep and d_add.
_PASSES = {"inference": 3, "training": 8}


def draw(case: Case) -> Problem:
    """A problem whose x is `add`, with `keep` (B, T, H) between 0 and 1 as its only parameter."""
    rng = np.random.default_rng(SEED)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    B, T, H = case.B, case.T, case.H
    keep = 1.0 / (1.0 + np.exp(-normal(B, T, H)))
    leaf = {"h": normal(1, B, H)}
    return Problem(case, {"keep": keep}, normal(B, T, H), leaf, normal(B, T, H), {"h": normal(1, B, H)})


def contestants(problem: Problem, *, has_jax: bool) -> Iterator[Contestant]:
    """Ours first."""
    yield _by_torch(NAME, problem, torch.float32)
    yield loop(problem)
    if has_jax:
        yield _jax(problem)


def loop(problem: Problem, dtype: torch.dtype = torch.float32) -> Contestant:
    """One multiply-and-add for each step, time-major; in float64 the oracle."""
    return _by_torch(LOOP, problem, dtype)


def _by_torch(name: str, problem: Problem, dtype: torch.dtype) -> Contestant:
    is_training, is_loop = problem.case.mode == "training", name == LOOP

    def leaf(value: Array) -> Tensor:
        turned = np.moveaxis(value, 1, 0) if is_loop and value.ndim == 3 else value
        return torch.tensor(np.ascontiguousarray(turned), dtype=dtype).requires_grad_(is_training)

    add, keep, h = leaf(problem.x), leaf(problem.parameters["keep"]), leaf(problem.state["h"][0])
    d_outputs = [leaf(problem.d_y).detach(), leaf(problem.d_state["h"][0]).detach()]

    def forward() -> tuple[Tensor, Tensor]:
        if not is_loop:
            return linear_scan(keep, add, h)
        now, ys = h, []
        for keep_t, add_t in zip(keep.unbind(0), add.unbind(0), strict=True):
            now = torch.addcmul(add_t, keep_t, now)
            ys.append(now)
        return torch.stack(ys), now

    def inference() -> Any:
        with torch.inference_mode():
            return *forward(), ()

    def training() -> Any:
        y, last = forward()
        return y, last, torch.autograd.grad([y, last], [add, h, keep], d_outputs)

    run = training if is_training else inference

    def results() -> dict[str, Array]:
        y, last, gradients = run()
        found = {"y": y.detach(), "h": last.detach()[None]}
        if gradients:
            d_add, d_h, d_keep = gradients
            found |= named_gradients(problem, [d_add, d_h[None], d_keep])
        sequences = ("y", "d_x", "d_keep")
        return {
            name: (value.transpose(0, 1) if is_loop and name in sequences else value).numpy()
            for name, value in found.items()
        }

    return Contestant(name, run, results, "operators one by one" if is_loop else "linear_scan")


def _jax(problem: Problem) -> Contestant:
    import jax
    import jax.numpy as jnp

    add, keep, h = (
        jnp.asarray(problem.x),
        jnp.asarray(problem.parameters["keep"]),
        jnp.asarray(problem.state["h"][0]),
    )
    d_y, d_h = jnp.asarray(problem.d_y), jnp.asarray(problem.d_state["h"][0])

    def forward(add: Any, h: Any, keep: Any) -> Any:
        def both(first: Any, second: Any) -> Any:
            return first[0] * second[0], first[1] * second[0] + second[1]

        started = add.at[:, 0].add(keep[:, 0] * h)
        y = jax.lax.associative_scan(both, (keep, started), axis=1)[1]
        return y, y[:, -1]

    def train(add: Any, h: Any, keep: Any, d_y: Any, d_h: Any) -> Any:
        outputs, pull = jax.vjp(forward, add, h, keep)
        return outputs, pull((d_y, d_h))

    is_training = problem.case.mode == "training"
    compiled = jax.jit(train if is_training else forward)
    given = (add, h, keep, d_y, d_h) if is_training else (add, h, keep)

    def call() -> Any:
        return jax.block_until_ready(compiled(*given))

    def results() -> dict[str, Array]:
        (y, last), gradients = call() if is_training else (call(), ())
        found = {"y": np.asarray(y), "h": np.asarray(last)[None]}
        if gradients:
            named = named_gradients(problem, gradients)
            found |= {name: np.asarray(value) for name, value in named.items()}
            found["d_h"] = found["d_h"][None]
        return found

    return Contestant("jax", call, results, "lax.associative_scan, jit")


def copy_s(case: Case) -> float:
    """How long torch takes to copy as many bytes as the scan must read and write at least."""
    n = case.B * case.T * case.H * _PASSES[case.mode] // 2
    source, target = torch.ones(n), torch.ones(n)
    times = []
    for _ in range(15):
        started_s = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started_s)
    return statistics.median(times)
