"""What makes the reference bitwise: one order of summation, and functions that treat every element alike."""

from __future__ import annotations

import pytest
import torch

from ostinato.kernels.reference import CELLS, exact_product, sigmoid

WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_product_does_not_depend_on_the_rows_beside_it(width, dtype):
    for rows in (1, 3, 24, 65):
        weight = torch.randn(rows, width, dtype=dtype)
        x = torch.randn(70, width, dtype=dtype)
        whole = exact_product(x, weight)
        for size in (1, 2, 5, 16, 33):
            parts = torch.cat([exact_product(part, weight) for part in x.split(size)])
            assert torch.equal(parts, whole), f"{rows}×{width} differs in batches of {size}"
        strided = exact_product(torch.stack([x, x], 1)[:, 1], weight)
        assert torch.equal(strided, whole), f"{rows}×{width} differs for a strided input"
        error = (whole - x @ weight.T).abs().max().item()
        assert error <= (1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_product_does_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    x, weight = torch.randn(70, 130), torch.randn(300, 130)
    torch.set_num_threads(1)
    expected = exact_product(x, weight)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(exact_product(x, weight), expected)
        assert torch.equal(exact_product(x[:1], weight), expected[:1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [sigmoid, torch.tanh, torch.relu])
def test_a_function_does_not_depend_on_an_elements_place(function, dtype):
    x = torch.randn(4099, dtype=dtype) * 4
    whole = function(x)
    for size in (1, 3, 7, 8, 13, 16, 31, 64):
        for offset in (0, 1, 5):
            parts = torch.cat([function(part) for part in x[offset:].split(size)])
            assert torch.equal(parts, whole[offset:]), f"differs in pieces of {size} from {offset}"
    assert torch.equal(function(torch.stack([x, x], 1)[:, 0]), whole)


def test_the_logistic_function_is_accurate_and_has_finite_derivatives():
    x = torch.linspace(-800, 800, 4001, dtype=torch.float64, requires_grad=True)
    y = sigmoid(x)
    assert (y - torch.sigmoid(x)).abs().max() <= 4e-16
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_every_row_names_its_source():
    for name, spec in CELLS.items():
        assert spec.name == name
        assert any(character.isdigit() for character in spec.source), f"{name} has no dated source"
        assert spec.step.__doc__
