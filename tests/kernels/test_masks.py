"""Masks drawn natively are those that torch's operators draw, to the bit."""

from __future__ import annotations

import pytest
import torch

from ostinato import _native
from ostinato.kernels import masks
from ostinato.kernels.masks import Places, Rate

RATES = (0.0, 2.0**-33, 0.1, 0.5, 0.999, 1 - 2.0**-40)


def _numbers(*shape):
    return torch.randint(-(2**62), 2**62, shape)


def _both(places, draw, monkeypatch):
    own = draw(places)
    with monkeypatch.context() as patch:
        patch.setattr(masks, "_native", None)
        return own, draw(places)


@pytest.fixture(params=_native.isas())
def isa(request):
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.mark.parametrize(
    ("B", "T", "width"), [(1, 1, 1), (3, 7, 40), (2, 5, 17), (4, 1, 1030), (0, 3, 8), (2, 0, 8)]
)
@pytest.mark.parametrize("p", RATES)
def test_native_masks_equal_the_operators(isa, B, T, width, p, monkeypatch):
    columns = {
        "as they come": (_numbers(B, T), _numbers(B, T)),
        "one episode": (_numbers(B, T), _numbers(B, 1)),
        "variational": (torch.full((B, 1), -1), torch.randint(0, 2, (B, T))),
        "strided": (_numbers(T, 2 * B)[:, ::2].t(), _numbers(T, 1).expand(T, B).t()),
    }
    rate = Rate(8193, width, p)
    for name, (t, episode) in columns.items():
        places = Places(_numbers(2 * B)[::2], _numbers(1).expand(B), t, episode)
        for draw in (
            lambda one: one.kept(rate),
            lambda one: one.dropped(rate),
            lambda one: one.factors(rate, torch.float32),
            lambda one: one.factors(rate, torch.float64, is_time_major=True),
        ):
            own, other = _both(places, draw, monkeypatch)
            assert own.dtype == other.dtype
            assert torch.equal(own, other), name


def test_what_is_drawn_time_major_is_contiguous():
    places = Places(_numbers(3), _numbers(3), _numbers(3, 5), _numbers(3, 1))
    assert places.dropped(Rate(1, 7, 0.5)).is_contiguous()
    assert places.factors(Rate(1, 7, 0.5), torch.float32, is_time_major=True).is_contiguous()


def test_masks_known_by_heart():
    """Runs must be repeatable with later versions: these bits never change."""
    ones = torch.ones(2, dtype=torch.int64)
    places = Places(
        ones * 2**40, torch.tensor([0, 7]), torch.tensor([[0, 1], [5, -1]]), torch.tensor([[0], [2]])
    )
    found = places.kept(Rate(16385, 24, 0.5)).flatten(0, 1)
    text = ["".join(str(int(bit)) for bit in row) for row in found]
    assert text == [
        "111001010000101000111110",
        "100000011011010011101010",
        "000000001011110011000001",
        "001101101111000110001001",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_types_take_the_operators(dtype):
    places = Places(_numbers(3), _numbers(3), _numbers(3, 5), _numbers(3, 1))
    factors = places.factors(Rate(1, 9, 0.25), dtype)
    assert factors.dtype == dtype
    assert torch.equal(factors != 0, places.kept(Rate(1, 9, 0.25)))


def test_traced_calls_take_the_operators():
    places = [_numbers(3), _numbers(3), _numbers(3, 5), _numbers(3, 1)]

    def draw(*numbers):
        return Places(*numbers).factors(Rate(1, 9, 0.25), torch.float32)

    compiled = torch.compile(draw, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*places), draw(*places))
    batched = torch.func.vmap(draw)(*(one.unsqueeze(0) for one in places))
    assert torch.equal(batched[0], draw(*places))
