"""JAX as a contestant: `lax.scan` under `jit`, the input product outside the scan, gradients by `vjp`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ostinato.bench.cases import Array, Problem
from ostinato.bench.timing import Contestant
from ostinato.errors import MissingExtraError

NAME = "jax"
# XLA's pool has one size for the process; for one thread it is left out of the compiled program.
ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}


def prepare(threads: int) -> None:
    """Say how many threads XLA's pool shall have; it counts only before JAX is first used."""
    os.environ.setdefault("NPROC", str(threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def version() -> str:
    """Of JAX.

    Raises:
        MissingExtraError: jax is not installed.
    """
    try:
        import jax
    except ImportError as error:
        raise MissingExtraError("the peer JAX", error.name or "jax", "bench") from None
    return str(jax.__version__)


def contestant(problem: Problem, threads: int) -> Contestant | None:
    """A scan over sequences; None for single steps, stacks and ragged batches."""
    import jax
    import jax.numpy as jnp

    case = problem.case
    if case.mode == "step" or not case.is_plain:
        return None
    names = [name.removesuffix("_l0") for name in problem.parameters]
    leaves = list(problem.state)

    def stored(array: Array) -> Any:
        # Kernels are (in, out) in JAX's libraries: no transposition inside the scan.
        return jnp.asarray(array.T if array.ndim == 2 else array)

    x = jnp.asarray(np.moveaxis(problem.x, 1, 0))
    state = {name: jnp.asarray(value[0]) for name, value in problem.state.items()}
    p = dict(zip(names, map(stored, problem.parameters.values()), strict=True))
    d_y = jnp.asarray(np.moveaxis(problem.d_y, 1, 0))
    d_state = {name: jnp.asarray(value[0]) for name, value in problem.d_state.items()}
    forward = _scan(case.cell, case.H)

    def train(x: Any, state: Any, p: Any, d_y: Any, d_state: Any) -> Any:
        outputs, pull = jax.vjp(forward, x, state, p)
        return outputs, pull((d_y, d_state))

    is_training = case.mode == "training"
    arguments = (x, state, p, d_y, d_state) if is_training else (x, state, p)
    compiled = jax.jit(
        train if is_training else forward, compiler_options=ONE_THREAD if threads == 1 else None
    )
    wait = jax.block_until_ready

    def call() -> Any:
        return wait(compiled(*arguments))

    def results() -> dict[str, Array]:
        (y, after), gradients = call() if is_training else (call(), None)
        found = {"y": np.moveaxis(np.asarray(y), 0, 1)}
        found |= {name: np.asarray(after[name])[None] for name in leaves}
        if gradients is not None:
            d_x, d_first, d_p = gradients
            found["d_x"] = np.moveaxis(np.asarray(d_x), 0, 1)
            found |= {f"d_{name}": np.asarray(d_first[name])[None] for name in leaves}
            for name, full in zip(names, problem.parameters, strict=True):
                value = np.asarray(d_p[name])
                found[f"d_{full}"] = value.T if value.ndim == 2 else value
        return found

    return Contestant(NAME, call, results, "lax.scan, jit")


def _scan(cell: str, H: int) -> Callable[..., Any]:
    """forward(x (T, B, D), state, p) -> (y (T, B, H), state)."""
    import jax
    import jax.numpy as jnp

    def lstm(p: Any, state: Any, a: Any) -> Any:
        gates = a + state["h"] @ p["weight_hh"]
        i, f, g, o = (gates[:, k * H : (k + 1) * H] for k in range(4))
        c = jax.nn.sigmoid(f) * state["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return {"h": jax.nn.sigmoid(o) * jnp.tanh(c), "c": c}

    def gru(p: Any, state: Any, a: Any) -> Any:
        h = state["h"]
        u = h @ p["weight_hh"] + p["bias_hh"]
        r = jax.nn.sigmoid(a[:, :H] + u[:, :H])
        z = jax.nn.sigmoid(a[:, H : 2 * H] + u[:, H : 2 * H])
        n = jnp.tanh(a[:, 2 * H :] + r * u[:, 2 * H :])
        return {"h": n + z * (h - n)}

    def rnn(p: Any, state: Any, a: Any) -> Any:
        return {"h": jnp.tanh(a + state["h"] @ p["weight_hh"])}

    step = {"lstm": lstm, "gru": gru, "rnn": rnn}[cell]

    def forward(x: Any, state: Any, p: Any) -> Any:
        # The GRU's recurrent bias stands inside the product with r; the others' can join the input's.
        bias = p["bias_ih"] if cell == "gru" else p["bias_ih"] + p["bias_hh"]

        def tick(now: Any, a: Any) -> Any:
            new = step(p, now, a)
            return new, new["h"]

        after, y = jax.lax.scan(tick, state, x @ p["weight_ih"] + bias)
        return y, after

    return forward
