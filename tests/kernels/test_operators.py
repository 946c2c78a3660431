"""The operators around a recurrence: PyTorch's own checks of them, derivatives, graphs, what is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ostinato.kernels import native, operators, recurrence, reference
from ostinato.kernels.recurrence import Arguments
from ostinato.kernels.reference import CellOptions
from ostinato.kernels.task import Task

D, H = 3, 5
EVERYTHING = CellOptions(norm=True, peephole=True, coupled_gates=True, projection=4, zoneout={"c": 0.2})
SOME_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
# Cell, its options, and what else the call has.
CASES = {
    "rnn": ("rnn", CellOptions(nonlinearity="relu"), set()),
    "gru-masked": ("gru", CellOptions(), {"mask"}),
    "gru-reverse": ("gru", CellOptions(reset_after=False), {"mask", "resets", "reverse"}),
    "lstm-cells": ("lstm", CellOptions(), {"cells", "mask", "resets"}),
    "lstm-everything": ("lstm", EVERYTHING, {"cells", "resets", "reverse"}),
    "lstm-noise": ("lstm", CellOptions(zoneout={"h": 0.3, "c": 0.2}, training=True), {"noise", "mask"}),
}


def call(name, *, dtype=torch.float64, B=3, T=4, requires_grad=True, keeps="gates"):
    """The task of a case, and arguments for it."""
    cell, options, has = CASES[name]
    spec = reference.CELLS[cell]
    sizes = spec.state_sizes(H, options).values()

    def tensors(shapes):
        return [(torch.randn(shape, dtype=dtype) * 0.5).requires_grad_(requires_grad) for shape in shapes]

    noise = [None, None, None]
    if "noise" in has:
        noise = [torch.rand(1, B, H, dtype=dtype) * 2, torch.rand(T, B, H) < 0.3, torch.rand(T, B, H) < 0.2]
    given = Arguments(
        tensors([(B, T, D)])[0],
        tensors([(B, *size) for size in sizes]),
        tensors([(B, *size) for size in sizes]) if "resets" in has else [],
        tensors(spec.parameter_shapes(D, H, options, bias=cell != "rnn").values()),
        torch.rand(B, T) < 0.6 if "mask" in has else None,
        torch.rand(B, T) < 0.3 if "resets" in has else None,
        noise,
    )
    return Task(cell, options, "reverse" in has, "cells" in has, keeps), given


@pytest.fixture(params=["steps", "saving", "native"])
def kernel(request, monkeypatch):
    """What the operators stand on: the plain steps, a stand-in that keeps something, or the native code."""
    calls = SimpleNamespace(kept=[], name=request.param)
    if request.param == "native":
        obstacle = native.obstacle(Task("gru", CellOptions(), False, False, "gates"), torch.empty(0))
        if obstacle:
            pytest.skip(obstacle)
        return calls

    def saved_shapes(task, B, T, D, H, dtype):
        return [] if task.keeps == "nothing" else [((B, T, 2 * H), dtype)]

    def forward(task, given):
        calls.kept.append(task.keeps)
        with torch.no_grad():
            outputs = recurrence.run_steps(task, given)
        shapes = saved_shapes(task, *given.x.shape, H, given.x.dtype)
        return outputs, [torch.full(shape, 3.0, dtype=dtype) for shape, dtype in shapes]

    def backward(task, given, saved, y, upstream, **wants):
        assert [value.unique().tolist() for value in saved] == [[3.0]]
        # As the native code does, which turns what was saved into gradients.
        saved[0].zero_()
        tensors = recurrence.tensors_of(given)
        grads = [upstream.y, *upstream.final, *([upstream.cells] if task.returns_cells else [])]
        found = recurrence.steps_gradients(task, given, [True] * len(tensors), grads)
        found = [torch.zeros_like(v) if d is None else d for v, d in zip(tensors, found, strict=True)]
        parts = recurrence.with_tensors(given, found)
        return parts.x, parts.state, parts.initial, parts.weights

    monkeypatch.setattr(native, "obstacle", lambda *_: "a stand-in" if request.param == "steps" else None)
    for name, function in (("saved_shapes", saved_shapes), ("forward", forward), ("backward", backward)):
        monkeypatch.setattr(native, name, function)
    return calls


def worst(found, expected):
    """Largest error over largest value."""
    return max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
        for a, b in zip(found, expected, strict=True)
        if b.numel()
    )


def gradients(outputs, tensors):
    torch.manual_seed(1)
    total = sum((output * torch.randn_like(output)).sum() for output in outputs)
    return torch.autograd.grad(total, tensors)


@pytest.mark.parametrize("name", CASES)
def test_a_call_equals_the_steps_with_every_gradient(name, kernel, tolerance):
    task, given = call(name)
    tensors = recurrence.tensors_of(given)
    outputs, expected = operators.run(task, given), recurrence.run_steps(task, given)
    error = worst(outputs, expected)
    assert error < tolerance[torch.float64], f"outputs differ by {error}"
    error = worst(gradients(outputs, tensors), gradients(expected, tensors))
    assert error < tolerance[torch.float64], f"gradients differ by {error}"


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_equal_differences(name, kernel):
    task, given = call(name, B=2, T=3)

    def function(*tensors):
        return tuple(operators.run(task, recurrence.with_tensors(given, tensors)))

    torch.autograd.gradcheck(function, recurrence.tensors_of(given), fast_mode=True)
    torch.autograd.gradgradcheck(function, recurrence.tensors_of(given), fast_mode=True)


@pytest.mark.parametrize("name", ["gru-reverse", "lstm-cells", "lstm-noise"])
def test_the_operators_pass_torchs_own_checks(name, kernel):
    task, given = call(name, dtype=torch.float32)
    ops, text = torch.ops.ostinato, operators.encode(task)
    torch.library.opcheck(ops.recurrence.default, (*given, text))
    plain = recurrence.with_tensors(given, [value.detach() for value in recurrence.tensors_of(given)])
    # Of what is kept, the native code leaves the rows of masked steps as they are.
    checks = SOME_CHECKS if kernel.name == "native" else (*SOME_CHECKS, "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.recurrence_saving.default, (*plain, text), test_utils=checks)
    flat = ops.recurrence_saving(*plain, text)
    n_outputs = operators._n_outputs(task)
    outputs, saved = flat[:n_outputs], flat[n_outputs:]
    wanted = [index != 1 for index in range(len(recurrence.tensors_of(plain)))]
    grads = [torch.randn_like(outputs[0]), None, *(torch.randn_like(value) for value in outputs[2:])]
    arguments = (*plain, wanted, outputs[0], saved, grads, text)
    torch.library.opcheck(ops.recurrence_backward.default, arguments)


@pytest.mark.parametrize("name", ["gru-reverse", "lstm-cells"])
def test_one_graph_holds_one_node_and_takes_any_batch_and_time(name, kernel, tolerance):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    task, _ = call(name)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda given: operators.run(task, given), fullgraph=True, dynamic=True, backend=backend
    )
    # Sizes that are equal in the first call would be taken for one size.
    for B, T in ((6, 8), (2, 9), (8, 7)):
        _, given = call(name, B=B, T=T)
        error = worst(compiled(given), recurrence.run_steps(task, given))
        assert error < tolerance[torch.float64], f"B={B}, T={T}: outputs differ by {error}"
    (graph,) = graphs
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("recurrence" in str(target) for target in targets) == 1, targets


def test_a_traced_training_step_keeps_what_backward_needs(kernel, tolerance):
    task, given = call("lstm-cells")
    tensors = recurrence.tensors_of(given)
    graphs = []

    def backend(graph, inputs):
        def keep(inner, _):
            graphs.append([str(node.target) for node in inner.graph.nodes if node.op == "call_function"])
            return make_boxed_func(inner.forward)

        return aot_autograd(fw_compiler=keep, bw_compiler=keep)(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(lambda given: operators.run(task, given), fullgraph=True, backend=backend)
    found = gradients(compiled(given), tensors)
    error = worst(found, gradients(recurrence.run_steps(task, given), tensors))
    assert error < tolerance[torch.float64], f"gradients differ by {error}"
    assert "ostinato.recurrence_saving.default" in graphs[0], graphs[0]
    assert "ostinato.recurrence_backward.default" in graphs[1], graphs[1]
    with torch.no_grad():
        compiled(given)
    assert "ostinato.recurrence.default" in graphs[2], graphs[2]


def test_tensors_without_memory_go_through_the_operator(kernel):
    task, given = call("gru-reverse", requires_grad=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = [tuple(output.shape) for output in operators.run(task, given)]
    assert shapes == [tuple(output.shape) for output in recurrence.run_steps(task, given)]
    graph = make_fx(lambda x: operators.run(task, given._replace(x=x)))(given.x)
    assert any("recurrence" in str(node.target) for node in graph.graph.nodes), graph.code


def test_nothing_is_kept_without_a_gradient_and_what_was_asked_for_with_one(monkeypatch):
    kept = []

    def forward(task, given):
        kept.append(task.keeps)
        with torch.no_grad():
            return recurrence.run_steps(task, given), []

    monkeypatch.setattr(native, "obstacle", lambda *_: None)
    monkeypatch.setattr(native, "forward", forward)
    for keeps in ("gates", "outputs"):
        task, given = call("gru-masked", keeps=keeps)
        operators.run(task, given)
        with torch.no_grad():
            operators.run(task, given)
        operators.run(*call("gru-masked", keeps=keeps, requires_grad=False))
    assert kept == ["gates", "nothing", "nothing", "outputs", "nothing", "nothing"]


def test_only_what_requires_a_gradient_receives_one(kernel):
    task, given = call("lstm-everything", requires_grad=False)
    given.weights[1].requires_grad_()
    given.state[1].requires_grad_()
    # A loss of the final state only: y and the cells receive no gradient.
    operators.run(task, given)[1].sum().backward()
    assert given.x.grad is None
    assert given.weights[0].grad is None
    expected = torch.autograd.grad(
        recurrence.run_steps(task, given)[1].sum(), [given.weights[1], given.state[1]]
    )
    error = worst([given.weights[1].grad, given.state[1].grad], expected)
    assert error < 1e-10, f"gradients differ by {error}"


def test_backward_runs_twice_where_the_graph_is_kept(kernel):
    task, given = call("lstm-cells")
    tensors = recurrence.tensors_of(given)
    total = operators.run(task, given)[0].sum()
    first = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(total, tensors, allow_unused=True)
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, tensors, allow_unused=True)


def test_a_weight_that_changed_before_backward_is_noticed(kernel):
    task, given = call("gru-masked")
    total = operators.run(task, given)[0].sum()
    with torch.no_grad():
        given.weights[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("is_reverse", [False, True])
@pytest.mark.parametrize("has_resets", [False, True])
def test_states_at_masked_steps_are_carried(is_reverse, has_resets):
    task, given = call("lstm-cells", B=16, T=9)
    task = task._replace(is_reverse=is_reverse)
    given = given._replace(resets=given.resets if has_resets else None)
    leaves = recurrence.run_steps(task, given)
    for index, leaf in ((0, leaves[0]), (1, leaves[3])):
        initial = given.initial[index] if has_resets else None
        found = operators.states_after_steps(
            leaf, given.state[index], initial, given.mask, given.resets, is_reverse=is_reverse
        )
        expected = given.state[index]
        for t in sorted(range(9), reverse=is_reverse):
            if has_resets and not is_reverse:
                expected = torch.where(given.resets[:, t, None], initial, expected)
            expected = torch.where(given.mask[:, t, None], leaf[:, t], expected)
            assert torch.equal(found[:, t], expected), f"leaf {index}, step {t}"
            if has_resets and is_reverse:
                expected = torch.where(given.resets[:, t, None], initial, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_task_survives_being_text(name):
    task, _ = call(name, keeps="outputs")
    assert operators.decode(operators.encode(task)) == task
    options = CellOptions(candidate="linear", nonlinearity="relu", zoneout={"c": 1 / 3})
    assert CellOptions.from_text(options.text) == options
    assert hash(CellOptions.from_text(options.text)) == hash(options)
