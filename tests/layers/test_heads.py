"""Output heads: quantiles that cannot cross, likelihoods against torch.distributions, moments of samples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from ostinato.errors import InputError
from ostinato.layers.heads import DISTRIBUTIONS, QuantileHead, distribution_head

LEVELS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quantile_head(horizon=4, anchors=3, scale=1.0):
    head = QuantileHead(6, anchors, horizon, LEVELS)
    with torch.no_grad():
        for p in head.parameters():
            p.normal_(std=scale)
    return head


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]))
def test_quantiles_never_cross(seed, scale):
    torch.manual_seed(seed)
    head = quantile_head(scale=scale)
    said = head(torch.randn(5, 4, 6) * scale, torch.randn(5, 4, 3) * scale)
    assert said.shape == (5, 4, len(LEVELS))
    assert torch.isfinite(said).all()
    assert (said.diff(dim=-1) >= 0).all(), f"smallest step {said.diff(dim=-1).min():.3g}"


def test_an_untrained_head_is_the_given_mixture_with_the_given_gaps():
    head = QuantileHead(6, 3, 4, LEVELS)
    mixture = torch.softmax(torch.randn(4, 3), -1)
    gaps = torch.rand(4, len(LEVELS) - 1) + 0.1
    head.start_from(mixture, gaps)
    anchors = torch.randn(5, 4, 3)
    said = head(torch.randn(5, 4, 6), anchors)
    torch.testing.assert_close(said[..., 3], (anchors * mixture).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said.diff(dim=-1), gaps.expand(5, -1, -1), atol=1e-4, rtol=1e-4)


def test_pinball_loss_equals_its_definition():
    head = quantile_head()
    q, y = torch.randn(5, 4, len(LEVELS)), torch.randn(5, 4)
    levels = np.array(LEVELS)
    error = y.numpy()[..., None] - q.numpy()
    expected = np.where(error >= 0, levels * error, (levels - 1) * error).mean(-1)
    np.testing.assert_allclose(head.loss(q, y).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("levels", [(0.1, 0.9), (0.5, 0.1, 0.9), (0.1, 0.4, 0.9), (0.1, 0.5, 0.95)])
def test_levels_without_a_middle_or_an_order_are_refused(levels):
    with pytest.raises(InputError, match=r"levels must rise, with 0\.5 in the middle"):
        QuantileHead(6, 1, 1, levels)


def test_an_unknown_distribution_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'poisson'.*gaussian, student_t, negative_binomial"):
        distribution_head("poisson", 3, 1)


def softplus(x):
    return torch.nn.functional.softplus(x)


def reference(name, location, shape, last, scale):
    """The distribution of the value itself (not relative), in torch.distributions."""
    if name == "gaussian":
        return distributions.Normal(last + scale * location, scale * (softplus(shape[..., 0] + 0.5) + 1e-3))
    if name == "student_t":
        df = 2 + softplus(shape[..., 1] + 2)
        return distributions.StudentT(
            df, last + scale * location, scale * (softplus(shape[..., 0] + 0.5) + 1e-3)
        )
    mean = scale * softplus((last + scale * location) / scale) + 1e-4
    r = 1 / (softplus(shape[..., 0] - 2) + 1e-4)
    return distributions.NegativeBinomial(r, logits=torch.log(mean / r))


def arguments(name, n=500):
    head = distribution_head(name, 6, 3).double()
    shape = torch.randn(n, head.n_shape, dtype=torch.float64)
    location = torch.randn(n, dtype=torch.float64)
    last = torch.randint(0, 9, (n,)).double()
    return head, location, shape, last, torch.rand(n, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_likelihoods_equal_torch_distributions(name):
    head, location, shape, last, scale = arguments(name)
    value = torch.randint(0, 20, (500,)).double()
    found = head.loss(location, shape, (value - last) / scale, last, scale)
    expected = -reference(name, location, shape, last, scale).log_prob(value)
    if not head.counts_only:
        expected = expected - torch.log(scale)  # the density of the relative value
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_have_the_moments_of_the_distribution(name):
    head, location, shape, last, scale = (a if i == 0 else a[:1] for i, a in enumerate(arguments(name)))
    n = 60_000
    wide = [a.expand(n, *a.shape[1:]) for a in (location, shape, last, scale)]
    drawn = wide[2] + wide[3] * head.sample(*wide, generator())
    law = reference(name, location, shape, last, scale)
    deviation = float(law.variance.sqrt())
    assert abs(float(drawn.mean() - law.mean)) < 0.03 * deviation, (float(drawn.mean()), float(law.mean))
    assert 0.8 < float(drawn.std()) / deviation < 1.2, (float(drawn.std()), deviation)
    if head.counts_only:
        assert torch.equal(drawn.round(), drawn.round().clamp(min=0))
        assert (drawn - drawn.round()).abs().max() < 1e-9


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_equal_generators_draw_equal_samples(name):
    head, *rest = arguments(name)
    assert torch.equal(head.sample(*rest, generator(3)), head.sample(*rest, generator(3)))
    assert not torch.equal(head.sample(*rest, generator(3)), head.sample(*rest, generator(4)))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("far", [1.0, 1e3, 1e6])
def test_gradients_are_finite_far_from_the_forecast(name, far):
    head = distribution_head(name, 6, 3)
    features, anchors = torch.randn(40, 6), torch.randn(40, 3) * far
    location, shape = head(features, anchors)
    last, scale = torch.full((40,), 3.0), torch.full((40,), 0.7)
    loss = head.loss(location, shape, torch.randn(40) * far, last, scale)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name


def test_quantile_gradients_reach_every_parameter():
    head = quantile_head(scale=0.3)
    head.loss(head(torch.randn(9, 4, 6), torch.randn(9, 4, 3)), torch.randn(9, 4)).sum().backward()
    for name, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
