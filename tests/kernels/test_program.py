"""The path `native program`: cells that a user wrote, against their own steps with torch operators."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ostinato as ot
from ostinato.kernels import ops, program

pytestmark = pytest.mark.skipif(bool(program.MISSING), reason=program.MISSING or "built")

B, T, D, H = 9, 12, 5, 7


class OwnCell(ot.Cell):
    """A cell around a function of (cell, x, leaves[, dt]) -> (y, leaves), with random parameters."""

    def __init__(self, function, shapes, leaves, y=H, takes_dt=False, **modules):
        super().__init__()
        self.input_size, self.output_size, self.takes_dt = D, y, takes_dt
        self.state_shapes = leaves
        self.function = function
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape) * 0.4))
        for name, module in modules.items():
            setattr(self, name, module)

    def step(self, x_t, state, *dt):
        y, leaves = self.function(self, x_t, state, *dt)
        return y, ot.State(leaves)


def indrnn(c, x, s):
    h = torch.relu(F.linear(x, c.w, c.b) + c.u * s.h)
    return h, {"h": h}


def lstm_of_a_concatenation(c, x, s):
    i, f, g, o = F.linear(torch.cat([x, s.h], 1), c.w, c.b).chunk(4, 1)
    new = f.sigmoid() * s.c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * new.tanh()
    return h, {"h": h, "c": new}


def norm_lstm(c, x, s):
    i, f, g, o = (c.norm_x(F.linear(x, c.w)) + c.norm_h(F.linear(s.h, c.v)) + c.b).chunk(4, 1)
    new = f.sigmoid() * s.c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.norm_c(new).tanh()
    return h, {"h": h, "c": new}


def peephole_lstm(c, x, s):
    a = x @ c.w.T + s.h @ c.v.T + c.b
    i = torch.sigmoid(a[:, :H] + c.p[0] * s.c)
    f = torch.sigmoid(a[:, H : 2 * H] + c.p[1] * s.c)
    new = f * s.c + i * torch.tanh(a[:, 2 * H : 3 * H])
    h = torch.sigmoid(a[:, 3 * H :] + c.p[2] * new) * torch.tanh(new)
    return h, {"h": h, "c": new}


def gru(c, x, s):
    a, u = F.linear(x, c.w, c.b), F.linear(s.h, c.v, c.b)
    r, z = torch.sigmoid(a[:, : 2 * H] + u[:, : 2 * H]).chunk(2, 1)
    n = torch.tanh(a[:, 2 * H :] + r * u[:, 2 * H :])
    h = (1 - z) * n + z * s.h
    return h, {"h": h}


def minimal_gated(c, x, s):
    f = torch.sigmoid(x @ c.w[:H].t() + s.h @ c.v[:H].t())
    n = torch.tanh(x @ c.w[H:].t() + (f * s.h) @ c.v[H:].t())
    h = torch.lerp(s.h, n, f)
    return F.linear(h, c.out), {"h": h}


def matrix_memory(c, x, s):
    q, k, v = F.linear(x, c.w).chunk(3, 1)
    k = k.softmax(1)
    forget = torch.sigmoid(x @ c.f).unsqueeze(2)
    memory = forget * s.memory + v.unsqueeze(2) * k.unsqueeze(1)
    norm = s.norm * forget.squeeze(2) + k
    read = torch.bmm(memory, q.unsqueeze(2)).squeeze(2)
    return read / (norm * q).sum(1, keepdim=True).abs().clamp(min=1.0), {"memory": memory, "norm": norm}


def ordered(c, x, s):
    a = F.linear(torch.cat([x, s.h], 1), c.w, c.b)
    forget = torch.cumsum(torch.softmax(a[:, :H], 1), 1)
    enter = 1 - torch.cumsum(torch.softmax(a[:, H : 2 * H], 1), 1)
    both = forget * enter
    new = s.c * (forget - both) + torch.tanh(a[:, 2 * H :]) * (enter + both)
    return new.tanh(), {"h": new.tanh(), "c": new}


def liquid(c, x, s, dt):
    rate = F.softplus(c.rate) + F.softplus(F.linear(torch.cat([x, s.h], -1), c.w, c.b))
    h = (s.h + dt.unsqueeze(1) * torch.tanh(x @ c.v)) / (1 + dt.unsqueeze(1) * rate)
    return h, {"h": h, "age": s.age * 0.5 + dt[:, None]}


def pointwise(c, x, s):
    a = F.linear(x, c.w) + c.u * s.h
    parts = [
        torch.exp(-a.abs()), (a * a + 1).sqrt(), (a.square() + 2).rsqrt(), 1 / (2 + a.cos()), a.sin(),
        torch.log(a.square() + 0.5), torch.log1p(a.square()), torch.expm1(0.1 * a), F.silu(a), F.gelu(a),
        F.gelu(a, approximate="tanh"), F.softplus(a, 2.0), F.elu(a), F.leaky_relu(a, 0.1), F.hardtanh(a),
        F.logsigmoid(a), torch.where(a > 0.3, a, a * 0.2), torch.maximum(a, s.h),
        torch.minimum(a, 0.3 * s.h), a.clamp(-0.5, 0.8), (a.abs() + 0.1) ** 1.7, a**3, 2.0 - a, a / 3,
        torch.sign(a) * a, a.masked_fill(a < 0, 0.25), torch.addcmul(a, a, s.h, value=0.3), a.floor() + a,
        torch.reciprocal(a.square() + 1), 2 ** (0.3 * a), a.erf(), F.mish(a),
    ]  # fmt: skip
    h = torch.tanh(sum(0.03 * part for part in parts))
    return h, {"h": h}


def reductions(c, x, s):
    a = F.linear(x, c.w).unflatten(1, (2, 4)) + s.h
    b = a - a.mean(2, keepdim=True)
    b = b / (a.var(2, keepdim=True) + 0.1) + a.amax(1, keepdim=True) + a.sum((1, 2), keepdim=True) * 0.1
    b = b + F.normalize(a, dim=1) + a.logsumexp(2, keepdim=True) + a.log_softmax(1) + a.std(2, keepdim=True)
    b = (
        b
        + torch.einsum("bij,bik->bjk", a, a)[:, :2]
        + a.norm(dim=2, keepdim=True)
        + a.flip(2)
        + a.amin(2)[:, :, None]
    )
    h = torch.tanh(0.3 * b + c.shift)
    return h.transpose(1, 2).flatten(1) * 0.5, {"h": h}


def shapes_of_all_kinds(c, x, s):
    heads = F.linear(x.unsqueeze(1).expand(-1, 3, -1) * c.scale, c.w)
    mixed = torch.stack([heads[:, 0], heads[:, 1] * s.h, heads[:, 2].relu()], 1)
    mixed = torch.cat([mixed, torch.zeros(len(x), 1, H).to(mixed)], 1) + torch.ones_like(s.h).unsqueeze(1)
    h = torch.tanh(
        mixed.sum(1) + mixed[:, 1:3].mean(1) + mixed.transpose(1, 2)[..., 0] + F.group_norm(mixed[:, 0], 1)
    )
    h = h.clone()
    h += 0.1
    h.mul_(0.9)
    return torch.cat([h[:, ::2], h.detach()[:, 1::2]], 1), {"h": h.view(-1, H)}


def glued(c, x, s):
    a = F.glu(F.linear(x, c.w) + (s.h.unsqueeze(1) * c.v).sum(2), 1)
    with torch.no_grad():
        scale = a.abs().mean(1, keepdim=True)
    return a, {"h": a / (1 + scale)}


STATE, TWO = {"h": (H,)}, {"h": (H,), "c": (H,)}


def lstm_shapes(**more):
    return {"w": (4 * H, D), "v": (4 * H, H), "b": (4 * H,), **more}


CELLS = {
    "indrnn": lambda: OwnCell(indrnn, {"w": (H, D), "u": (H,), "b": (H,)}, STATE),
    "lstm of a concatenation": lambda: OwnCell(
        lstm_of_a_concatenation, {"w": (4 * H, D + H), "b": (4 * H,)}, TWO
    ),
    "norm lstm": lambda: OwnCell(
        norm_lstm, lstm_shapes(), TWO, norm_x=nn.LayerNorm(4 * H), norm_h=nn.LayerNorm(4 * H, bias=False),
        norm_c=nn.LayerNorm(H),
    ),
    "peephole lstm": lambda: OwnCell(peephole_lstm, lstm_shapes(p=(3, H)), TWO),
    "gru": lambda: OwnCell(gru, {"w": (3 * H, D), "v": (3 * H, H), "b": (3 * H,)}, STATE),
    "minimal gated": lambda: OwnCell(
        minimal_gated, {"w": (2 * H, D), "v": (2 * H, H), "out": (3, H)}, STATE, y=3
    ),
    "matrix memory": lambda: OwnCell(
        matrix_memory, {"w": (12, D), "f": (D, 4)}, {"memory": (4, 4), "norm": (4,)}, y=4
    ),
    "ordered": lambda: OwnCell(ordered, {"w": (3 * H, D + H), "b": (3 * H,)}, TWO),
    "liquid": lambda: OwnCell(
        liquid, {"w": (H, D + H), "b": (H,), "rate": (H,), "v": (D, H)}, {"h": (H,), "age": (1,)},
        takes_dt=True,
    ),
    "pointwise": lambda: OwnCell(pointwise, {"w": (H, D), "u": (H,)}, STATE),
    "reductions": lambda: OwnCell(reductions, {"w": (8, D), "shift": (2, 1)}, {"h": (2, 4)}, y=8),
    "shapes": lambda: OwnCell(shapes_of_all_kinds, {"w": (H, D), "scale": (3, D)}, STATE),
    "glued": lambda: OwnCell(glued, {"w": (2 * H, D), "v": (2 * H, H)}, STATE),
}  # fmt: skip


def rules(generator, takes_dt, dtype):
    mask = torch.rand(B, T, generator=generator) < 0.7
    mask[2] = False
    resets = torch.rand(B, T, generator=generator) < 0.2
    dt = {"dt": torch.rand(B, T, generator=generator, dtype=dtype, requires_grad=True)} if takes_dt else {}
    yield dt
    yield {"mask": mask, **dt}
    yield {"resets": resets, "return_states": True, **dt}
    yield {"mask": mask, "resets": resets, **dt}


def everything(layer, x, state, call):
    """Outputs, then gradients of x, the state, the parameters and dt."""
    out = layer(x, state, **call)
    outputs = [out.y, *out.state.values(), *(out.states.values() if out.states is not None else ())]
    generator = torch.Generator().manual_seed(5)
    total = sum((torch.randn(o.shape, generator=generator, dtype=o.dtype) * o).sum() for o in outputs)
    sources = [x, *state.values(), *layer.parameters(), *([call["dt"]] if "dt" in call else [])]
    return [o.detach() for o in outputs], torch.autograd.grad(total, sources, allow_unused=True)


def worst(found, expected):
    errors = [0.0]
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            assert not any(value.any() for value in (one, other) if value is not None)
            continue
        assert one.shape == other.shape
        errors.append(((one - other).abs().max() / other.abs().max().clamp(min=1e-3)).item())
    return max(errors)


@pytest.fixture
def through_steps(monkeypatch):
    """A function that runs another one with the native program switched off."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(ops, "prepare_program", lambda *_: "switched off")
            return function(*args)

    return run


@pytest.mark.parametrize(("dtype", "bidirectional"), [(torch.float32, False), (torch.float64, True)])
@pytest.mark.parametrize("name", CELLS)
def test_any_cell_equals_its_own_steps(name, bidirectional, dtype, tolerance, through_steps):
    cells = [CELLS[name]() for _ in range(1 + bidirectional)]
    layer = ot.Recurrent([cells] if bidirectional else cells[0], bidirectional=bidirectional).to(dtype)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(B, T, D, generator=generator, dtype=dtype, requires_grad=True)
    state = layer.initial_state(B).map(
        lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=dtype).requires_grad_()
    )
    for call in rules(generator, layer.takes_dt, dtype):
        found = everything(layer, x, state, call)
        assert layer.path == "native program", layer.explain(x)
        expected = through_steps(everything, layer, x, state, call)
        assert layer.path == "torch steps"
        for what, one, other in zip(("outputs", "gradients"), found, expected, strict=True):
            error = worst(one, other)
            assert error <= 3 * tolerance[dtype], f"{name}, {list(call)}, {what}: {error:.3g}"
        with torch.no_grad():
            assert (
                torch.equal(layer(x, state, **call).y, found[0][0])
                or worst([layer(x, state, **call).y], found[0][:1]) <= 3 * tolerance[dtype]
            )


class Refused(OwnCell):
    def __init__(self, function, **modules):
        super().__init__(function, {"w": (H, D)}, STATE, **modules)


OUTSIDE = torch.ones(H)


def counted(c, x, s):
    c.count = getattr(c, "count", 0) + 1
    return F.linear(x, c.w), {"h": s.h}


REFUSED = {
    "random": (lambda c, x, s: (F.dropout(F.linear(x, c.w), 0.5), {"h": s.h}), "is random"),
    "course": (
        lambda c, x, s: (F.linear(x, c.w) if s.h.sum() > 0 else s.h, {"h": s.h}),
        "depends on the data",
    ),
    "outside": (lambda c, x, s: (s.h * OUTSIDE, {"h": s.h}), "neither a parameter nor a buffer"),
    "rows": (lambda c, x, s: (s.h - s.h.mean(0), {"h": s.h}), "along the batch axis"),
    "batch": (lambda c, x, s: (s.h / len(x), {"h": s.h}), "another y than the step itself"),
    "unknown": (lambda c, x, s: (s.h.sort(1)[0], {"h": s.h}), "no operator 'sort'"),
    "in place": (lambda c, x, s: (s.h.add_(1), {"h": s.h}), "add_ changes an input"),
    "view in place": (lambda c, x, s: ((y := s.h * 2)[:, 0].mul_(2), (y, {"h": s.h}))[1], "a view in place"),
    "attribute": (counted, "changes attributes"),
    "failing": (lambda c, x, s: 1 / 0, "tracing the step failed .ZeroDivisionError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_natively_runs_as_steps_and_says_why(name):
    function, reason = REFUSED[name]
    path = ot.Recurrent(Refused(function)).explain(torch.zeros(1, 1, D))
    assert (path.path, path.is_fallback) == ("torch steps", True)
    assert re.search(reason, path.reason), path.reason


def test_a_hook_keeps_a_cell_on_its_steps():
    cell = CELLS["norm lstm"]()
    layer = ot.Recurrent(cell)
    assert layer.explain(torch.zeros(1, 1, D)).path == "native program"
    handle = cell.norm_x.register_forward_hook(lambda *_: None)
    assert "LayerNorm of the cell has hooks" in layer.explain(torch.zeros(1, 1, D)).reason
    handle.remove()
    assert layer.explain(torch.zeros(1, 1, D)).path == "native program"


class Switched(ot.Cell):
    """Reads attributes of every kind."""

    def __init__(self):
        super().__init__()
        self.input_size = self.output_size = H
        self.state_shapes = {"h": (H,)}
        self.gain, self.sizes, self.mode = 1.0, [2, {"shift": 0.5}], "tanh"
        self.offset = torch.full((H,), 0.25)
        self.register_buffer("scale", torch.ones(H))
        self.weight = nn.Parameter(torch.ones(H))

    def step(self, x_t, state):
        y = getattr(torch, self.mode)(self.gain * x_t * self.weight * self.scale) + self.sizes[1]["shift"]
        return y * (2.0 if self.training else 1.0) + self.offset, ot.State(h=state.h)


def test_a_change_of_the_cell_is_seen():
    layer, x = ot.Recurrent(Switched()), torch.randn(2, 3, H)
    cell = layer.cells[0][0]
    changes = [
        lambda: None,
        lambda: setattr(cell, "gain", 3.0),
        lambda: cell.sizes[1].update(shift=-1.0),
        lambda: cell.sizes.__setitem__(0, 7),
        lambda: setattr(cell, "mode", "sigmoid"),
        layer.eval,
        lambda: setattr(cell, "offset", torch.full((H,), 9.0)),
        lambda: cell.offset.mul_(2),
        lambda: cell.scale.fill_(0.5),
        lambda: cell.weight.data.mul_(0.1),
        lambda: setattr(cell, "weight", nn.Parameter(torch.full((H,), 2.0))),
        lambda: cell.weight.requires_grad_(False),
        lambda: setattr(cell, "gain", 1.0),
    ]
    with torch.no_grad():
        for change in changes:
            change()
            out = layer(x)
            assert layer.path == "native program"
            expected = torch.stack(
                [cell.step(x[:, t], out.state.map(lambda v: v[:, 0, 0]))[0] for t in range(3)], 1
            )
            assert torch.allclose(out.y, expected, atol=1e-6)
    other = copy.deepcopy(layer)
    other.cells[0][0].gain = 5.0
    assert not torch.allclose(other(x).y, layer(x).y)
    assert torch.equal(layer.double()(x.double()).y.float().round(decimals=3), out.y.round(decimals=3))


def test_tracing_draws_nothing_and_does_not_depend_on_time():
    before = torch.get_rng_state()
    layer = ot.Recurrent(CELLS["gru"]())
    torch.set_rng_state(before)
    layer(torch.zeros(2, 3, D))
    assert torch.equal(torch.get_rng_state(), before)
    known = program._cells[layer.cells[0][0]]
    for T in (1, 50):
        layer(torch.zeros(4, T, D)).y.sum().backward()
    assert len(known.variants) == 1


@pytest.mark.parametrize("name", ["norm lstm", "matrix memory", "minimal gated"])
def test_bits_depend_on_neither_threads_nor_batch_nor_chunks(name):
    layer, x = ot.Recurrent(CELLS[name]()), torch.randn(70, 25, D)
    found = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        y = layer(x).y
        found.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with torch.no_grad():
        first = layer(x[3:5, :11])
        parts = [first.y, layer(x[3:5, 11:], first.state).y]
    assert torch.equal(torch.cat(parts, 1), found[0][0][3:5])


def test_second_derivatives_go_through_the_steps():
    layer = ot.Recurrent(CELLS["liquid"]()).double()
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    resets = torch.tensor([[False, False, True, False], [False, True, False, False]])
    dt = torch.rand(2, 4, dtype=torch.float64)

    def function(x, *values):
        parameters = dict(zip(dict(layer.named_parameters()), values, strict=True))
        call = {"mask": mask, "resets": resets, "dt": dt}
        return torch.func.functional_call(layer, parameters, (x,), call).y

    values = (torch.randn(2, 4, D, dtype=torch.float64), *(p.detach() for p in layer.parameters()))
    values = tuple(value.clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(function, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)
    assert layer.path == "native program"


def test_functorch_takes_the_steps():
    layer = ot.Recurrent(CELLS["gru"]())
    x = torch.randn(3, 4, D)
    per_row = torch.func.vmap(lambda row: layer(row.unsqueeze(0)).y.sum())(x)
    assert layer.path == "torch steps"
    assert torch.allclose(per_row.sum(), layer(x).y.sum(), atol=1e-5)


def test_frozen_parameters_and_inputs_get_no_gradient():
    layer = ot.Recurrent(CELLS["gru"]())
    layer.cells[0][0].v.requires_grad_(False)
    layer(torch.randn(2, 3, D)).y.sum().backward()
    assert layer.cells[0][0].v.grad is None
    assert math.isfinite(layer.cells[0][0].w.grad.sum().item())
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(2, 3, D, requires_grad=True)
    layer(x).y.sum().backward()
    assert x.grad.abs().sum() > 0


def test_sizes_of_nothing():
    layer = ot.Recurrent(CELLS["gru"]())
    for shape in ((0, 3, D), (2, 0, D), (0, 0, D)):
        out = layer(torch.zeros(shape))
        assert out.y.shape == (*shape[:2], H)
        assert out.state.h.shape == (shape[0], 1, 1, H)


def test_inference_mode_and_changed_weights():
    layer, x = ot.Recurrent(CELLS["gru"]()), torch.randn(2, 3, D)
    with torch.inference_mode():
        first = layer(x).y.clone()
        assert torch.equal(layer(x).y, first)
        for parameter in layer.parameters():
            parameter.mul_(0.5)
        changed = layer(x).y.clone()
        inside = ot.Recurrent(CELLS["gru"]())
        assert inside(x).y.shape == first.shape
        assert inside.path == "native program"
    assert not torch.allclose(first, changed)
    assert torch.allclose(layer(x).y, changed, atol=1e-6)


def test_without_the_native_kernels_a_cell_runs_as_steps(monkeypatch):
    monkeypatch.setattr(program, "MISSING", "the native kernels are not built (gone)")
    path = ot.Recurrent(CELLS["gru"]()).explain(torch.zeros(1, 1, D))
    assert path.path == "torch steps"
    assert "are not built" in path.reason
