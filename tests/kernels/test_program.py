"""The path `native program`: cells that a user wrote, against their own steps with torch operators."""

from __future__ import annotations

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
        F.gelu(a, approximate="tanh"), F.softplus(a, 2.0), F.elu(a), F.leaky_relu(a, 0.1), F.hardtanh(a), F.mish(a),
        F.logsigmoid(a), torch.where(a > 0.3, a, a * 0.2), torch.maximum(a, s.h),
        torch.minimum(a, 0.3 * s.h), a.clamp(-0.5, 0.8), (a.abs() + 0.1) ** 1.7, a**3, 2.0 - a, a / 3, torch.sign(a) * a,
        a.masked_fill(a < 0, 0.25), torch.addcmul(a, a, s.h, value=0.3), a.floor() + a, torch.reciprocal(a.square() + 1),
        2 ** (0.3 * a), a.erf(),
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
        liquid, {"w": (H, D + H), "b": (H,), "rate": (H,), "v": (D, H)}, {"h": (H,), "age": (1,)}, takes_dt=True
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
            assert (one is None or not one.any()) and (other is None or not other.any())
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bidirectional", [False, True])
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
