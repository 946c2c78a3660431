"""ONNX Runtime as a contestant: its own LSTM, GRU and RNN operators, in inference."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ostinato.bench.cases import Array, Problem
from ostinato.bench.subjects import after_steps
from ostinato.bench.timing import Contestant
from ostinato.errors import MissingExtraError

NAME = "onnxruntime"
# torch's blocks of H rows in the order in which ONNX has them: iofc of ifgo, and zrh of rzn.
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
_OPSET = 17


def version() -> str:
    """Of ONNX Runtime.

    Raises:
        MissingExtraError: onnxruntime or onnx is not installed.
    """
    try:
        import onnx  # noqa: F401 - builds the models
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("the peer ONNX Runtime", error.name or "onnxruntime", "bench") from None
    return str(onnxruntime.__version__)


def contestant(problem: Problem, threads: int) -> Contestant | None:
    """One recurrent operator with state in and out; None for training, stacks and ragged batches."""
    case = problem.case
    if case.mode == "training" or not case.is_plain:
        return None
    session = _session(_model(problem), threads)
    x = np.ascontiguousarray(np.moveaxis(problem.x, 1, 0))
    return _step(problem, session, x) if case.mode == "step" else _sequence(problem, session, x)


def _model(problem: Problem) -> bytes:
    """A graph with the inputs x (T, B, D), h and c (1, B, H), and the outputs y (T, 1, B, H), h and c."""
    from onnx import TensorProto, helper, numpy_helper

    case, p = problem.case, problem.parameters
    H = case.H

    def ordered(name: str) -> Array:
        blocks = p[name].reshape(len(_ORDER[case.cell]), H, *p[name].shape[1:])
        return np.ascontiguousarray(blocks[list(_ORDER[case.cell])].reshape(p[name].shape))

    constants = {
        "W": ordered("weight_ih_l0")[None],
        "R": ordered("weight_hh_l0")[None],
        "B": np.concatenate([ordered("bias_ih_l0"), ordered("bias_hh_l0")])[None],
    }
    leaves = list(problem.state)
    attributes: dict[str, Any] = {"hidden_size": H}
    if case.cell == "gru":
        attributes["linear_before_reset"] = 1
    outputs = [*([] if case.mode == "step" else ["y"]), *(f"{name}_out" for name in leaves)]
    node = helper.make_node(
        case.cell.upper(),
        ["x", "W", "R", "B", "", *leaves],
        [*([""] if case.mode == "step" else ["y"]), *(f"{name}_out" for name in leaves)],
        **attributes,
    )
    shapes = {"x": (case.T, case.B, case.D), "y": (case.T, 1, case.B, H)}
    shapes |= {name: (1, case.B, H) for leaf in leaves for name in (leaf, f"{leaf}_out")}

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])

    graph = helper.make_graph(
        [node],
        case.cell,
        [info(name) for name in ("x", *leaves)],
        [info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return bytes(model.SerializeToString())


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _value(array: Array) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _empty(*shape: int) -> Any:
    return _value(np.empty(shape, dtype=np.float32))


def _faster(first: Callable[[], Any], second: Callable[[], Any]) -> bool:
    """Whether the first of two forms of the same call is at least as fast."""
    best = []
    for form in (first, second):
        times = []
        for _ in range(5):
            started_s = time.perf_counter()
            form()
            times.append(time.perf_counter() - started_s)
        best.append(min(times))
    return best[0] <= best[1]


def _sequence(problem: Problem, session: Any, x: Array) -> Contestant:
    case, leaves = problem.case, list(problem.state)
    feed = {"x": x, **problem.state}
    names = ["y", *(f"{name}_out" for name in leaves)]
    shapes = [(case.T, 1, case.B, case.H), *[(1, case.B, case.H)] * len(leaves)]
    bound = {name: _empty(*shape) for name, shape in zip(names, shapes, strict=True)}
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, _value(array))
    for name, value in bound.items():
        binding.bind_ortvalue_output(name, value)

    def plain() -> Any:
        return session.run(names, feed)

    def with_binding() -> Any:
        session.run_with_iobinding(binding)
        return [value.numpy() for value in bound.values()]

    is_bound = _faster(lambda: session.run_with_iobinding(binding), plain)
    timed = (lambda: session.run_with_iobinding(binding)) if is_bound else plain

    def results() -> dict[str, Array]:
        y, *state = with_binding() if is_bound else plain()
        return {"y": np.moveaxis(y[:, 0], 0, 1), **dict(zip(leaves, state, strict=True))}

    return Contestant(NAME, timed, results, "bound buffers" if is_bound else "session.run")


def _step(problem: Problem, session: Any, x: Array) -> Contestant:
    """State goes to and fro between two sets of buffers, so that no call copies it."""
    leaves = list(problem.state)
    names = [f"{name}_out" for name in leaves]
    sets = [{name: _empty(*value.shape) for name, value in problem.state.items()} for _ in range(2)]
    bindings = []
    for source, target in ((0, 1), (1, 0)):
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", _value(x))
        for name in leaves:
            binding.bind_ortvalue_input(name, sets[source][name])
            binding.bind_ortvalue_output(f"{name}_out", sets[target][name])
        bindings.append(binding)
    turn = [0]
    run = session.run_with_iobinding

    def bound_call() -> None:
        run(bindings[turn[0]])
        turn[0] ^= 1

    feed = {"x": x, **problem.state}

    def plain_call() -> None:
        found = session.run(names, feed)
        for name, value in zip(leaves, found, strict=True):
            feed[name] = value

    is_bound = _faster(bound_call, plain_call)

    def results() -> dict[str, Array]:
        turn[0] = 0
        for name, value in problem.state.items():
            sets[0][name].update_inplace(np.ascontiguousarray(value))
            feed[name] = value
        call = bound_call if is_bound else plain_call

        def now() -> dict[str, Any]:
            return {name: sets[turn[0]][name].numpy() if is_bound else feed[name] for name in leaves}

        return after_steps(call, now, problem)

    return Contestant(
        NAME, bound_call if is_bound else plain_call, results, "bound buffers" if is_bound else "session.run"
    )
