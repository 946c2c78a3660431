"""Whether ours are right on a GPU: beside float64, again to the bit, and in PyTorch's machinery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ostinato.bench import gpu_problems, gpu_scans
from ostinato.bench.gpu_cases import GpuCase
from ostinato.bench.gpu_problems import Problem

# Largest error over largest value, of outputs; gradients may be twice as far, and all twice as far as cuDNN.
TOLERANCES = {"float16": 4e-3, "bfloat16": 2.5e-2, "tf32": 3e-3, "float32": 2e-5}
Results = Mapping[str, Tensor]


def errors(found: Results, expected: Results) -> dict[str, float]:
    """Of each tensor, the largest error over the largest value; infinite for what is not finite."""
    named = {}
    for name, value in expected.items():
        mine = found[name].double()
        error = (mine - value).abs().max() / value.abs().max().clamp(min=1e-30)
        named[name] = float(error) if torch.isfinite(mine).all() else float("inf")
    return named


def verdict(found: Results, expected: Results, precision: str, peer: Results | None = None) -> dict[str, Any]:
    """`status` ok or differs, the worst tensor, its error, and cuDNN's error in the same tensors."""
    own = errors(found, expected)
    theirs = errors(peer, {name: expected[name] for name in peer}) if peer else {}

    def allowed(name: str) -> float:
        least = TOLERANCES[precision] * (2 if name.startswith("d_") else 1)
        return max(least, 2 * theirs.get(name, 0.0))

    worst = max(own, key=lambda name: own[name] / allowed(name))
    result = {
        "status": "ok" if own[worst] <= allowed(worst) else "differs", "worst": worst, "error": own[worst],
        "allowed": allowed(worst), "largest_error": max(own.values()),
    }  # fmt: skip
    if theirs:
        result["error_of_cudnn"] = max(theirs.values())
    return {name: _plain(value) for name, value in result.items()}


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return min(value, 1e30) if isinstance(value, float) else value


def is_repeatable(run: Callable[[], Results], first: Results, repeats: int) -> bool:
    """Whether all further answers have the same bits; waits for the device once, at the end."""
    differs: Tensor | None = None
    for _ in range(repeats):
        for name, value in run().items():
            now = (_bits(value) != _bits(first[name])).any()
            differs = now if differs is None else differs | now
    return differs is None or not bool(differs)


def _bits(value: Tensor) -> Tensor:
    """As integers, in which every NaN is itself."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.contiguous().view(kinds[value.element_size()])


def check_layer(case: GpuCase, device: torch.device) -> dict[str, Any]:
    """A layer, or the kernels in one mode, beside float64, and repeated."""
    with gpu_problems.precision_of(case):
        problem = gpu_problems.draw_ours(case, device)
        run = (lambda: run_mode(problem, case.mode)) if case.mode else problem.results
        found = run()
        path = f"triton {case.mode}" if case.mode else str(problem.layer.explain(problem.x))
        peer = _cudnn_results(problem)
        same = is_repeatable(run, found, case.repeats)
        expected = problem.in_float64().results()
    result = verdict(found, expected, case.precision, peer)
    if not same:
        result["status"] = "not repeatable"
    return {**result, "path": path, "repeats": case.repeats}


def _cudnn_results(problem: Problem) -> Results | None:
    """y and d_x as cuDNN has them: a measure of what the precision itself costs."""
    peer = gpu_problems.cudnn(problem)
    return None if peer is None or problem.x.device.type != "cuda" else {"y": peer.y().detach()}


def run_mode(problem: Problem, mode: str) -> dict[str, Tensor]:
    """Outputs and gradients of a single layer by the kernels of one mode, called without the layer around."""
    from ostinato.kernels import triton_recurrent
    from ostinato.kernels.task import NO_NOISE, Arguments, Task, Upstream

    layer, case = problem.layer, problem.case
    shapes = layer.spec.state_sizes(case.H, layer._cell_options)
    state = [problem.x.new_zeros(case.B, *shape) for shape in shapes.values()]
    task = Task(case.cell, layer._cell_options, False, False, "gates")
    weights = [value.detach() for value in layer.parameters()]
    given = Arguments(problem.x.detach(), state, [], weights, None, None, NO_NOISE)
    (y, *final), saved = triton_recurrent.forward(task, given, only=mode)
    upstream = Upstream(problem.d_y, [torch.ones_like(leaf) * 0.5 for leaf in final], None)
    d_x, _, _, d_weights = triton_recurrent.backward(task, given, saved, y, upstream, only=mode)
    found = {"y": y}
    found |= {name: leaf[:, None, None] for name, leaf in zip(layer.spec.leaves, final, strict=True)}
    names = [name for name, _ in layer.named_parameters()]
    assert d_x is not None
    gradients = {name: value for name, value in zip(names, d_weights, strict=True) if value is not None}
    return found | {"d_x": d_x} | {f"d_{name}": value for name, value in gradients.items()}


def check_scan(case: GpuCase, device: torch.device) -> dict[str, Any]:
    """A scan beside float64, and repeated."""
    ours = gpu_scans.draw(case, device)
    found = ours.results()
    same = is_repeatable(ours.results, found, case.repeats)
    result = verdict(found, ours.in_float64().results(), case.precision)
    if not same:
        result["status"] = "not repeatable"
    return {**result, "path": ours.path(), "repeats": case.repeats}


# Features ------------------------------------------------------------------------------------------------


def check_feature(case: GpuCase, device: torch.device) -> dict[str, Any]:
    """What `case.tag` names, by a layer of that case: the same as a plain call gives."""
    if device.type != "cuda" and case.tag in ("graph", "stream"):
        return {"status": "none", "detail": "there are no such things on a CPU"}
    with gpu_problems.precision_of(case):
        return _FEATURES[case.tag](gpu_problems.draw_ours(case, device))


def _same(found: Results, expected: Results) -> dict[str, Any]:
    different = [
        name for name, value in expected.items() if not torch.equal(_bits(found[name]), _bits(value))
    ]
    detail = f"other bits: {', '.join(different)}" if different else ""
    return {"status": "differs" if different else "ok", "detail": detail}


def _graph(problem: Problem) -> dict[str, Any]:
    """Forward and backward recorded in a CUDA graph, and played on another input."""
    problem.results()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            problem.results()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = problem.results()
    with torch.no_grad():
        problem.x.mul_(-0.5)
    for _ in range(3):
        graph.replay()
    played = {name: value.clone() for name, value in recorded.items()}
    return _same(played, problem.results())


def _stream(problem: Problem) -> dict[str, Any]:
    """On a stream of its own, behind work that takes long: a kernel on another stream comes too early."""
    expected = problem.results()
    value = problem.x.detach().clone()
    with torch.no_grad():
        problem.x.fill_(float("nan"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            problem.x.copy_(value)
        found = problem.results()
    torch.cuda.current_stream().wait_stream(side)
    return _same(found, expected)


def _autocast(problem: Problem) -> dict[str, Any]:
    """Weights and state in float32, products and y in autocast's dtype."""
    problem.layer.float()
    problem.x = problem.x.detach().float().requires_grad_()
    problem.d_y = problem.d_y.float()
    dtype, kind = torch.bfloat16, problem.x.device.type
    with torch.autocast(kind, dtype):
        output = problem.run()
        path = problem.layer.path
    gradients = torch.autograd.grad(output.y, problem.wanted, problem.d_y.to(dtype))
    wrong = []
    if output.y.dtype != dtype:
        wrong.append(f"y is {output.y.dtype}")
    wrong += [f"{name} is {leaf.dtype}" for name, leaf in output.state.items() if leaf.dtype != torch.float32]
    wrong += [f"a gradient is {value.dtype}" for value in gradients if value.dtype != torch.float32]
    expected = problem.in_float64().run().y
    error = errors({"y": output.y.detach()}, {"y": expected.detach()})["y"]
    if error > TOLERANCES["bfloat16"]:
        wrong.append(f"y is {error:.1e} off")
    return {
        "status": "differs" if wrong else "ok",
        "detail": "; ".join(wrong) or f"path {path}",
        "error": error,
    }


def _compile(problem: Problem) -> dict[str, Any]:
    """One graph of the whole layer, the same results."""
    expected = problem.results()
    compiled = torch.compile(problem.layer, fullgraph=True)
    problem.run = lambda: compiled(problem.x, problem.state)  # type: ignore[method-assign]
    found = problem.results()
    worst = max(errors(found, {name: value.double() for name, value in expected.items()}).values())
    limit = TOLERANCES[problem.case.precision]
    return {"status": "ok" if worst <= limit else "differs", "detail": f"largest difference {worst:.1e}"}


_FEATURES = {"graph": _graph, "stream": _stream, "autocast": _autocast, "compile": _compile}
