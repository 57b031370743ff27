"""Densities against torch.distributions, gradients against finite differences, samplers against theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as D
from torch.nn import functional as F

from training import densities
from training.densities import (
    _AtClusters,
    at_clusters,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    normal_log_density,
    sample_categorical,
    sample_normal,
    sample_relaxed,
)


def inputs(dtype=torch.float64, shape=(3, 5, 7)):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    raw = (4 * torch.randn(shape, generator=generator, dtype=dtype)).requires_grad_()
    x = torch.rand(shape[1:], generator=generator, dtype=dtype)
    return x, mean, raw, torch.tensor(0.25, dtype=dtype)


@pytest.mark.parametrize("block", [1, 16, 1 << 16])
def test_gaussian_log_likelihood_and_gradient(block, monkeypatch):
    monkeypatch.setattr(densities, "_CACHE_VALUES", block)
    x, mean, raw, epsilon = inputs()
    found = gaussian_log_likelihood(x, mean, raw, epsilon)
    expected = D.Normal(mean, F.softplus(raw) + epsilon).log_prob(x).sum(-1)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), (mean, raw)),
        torch.autograd.grad((expected * weights).sum(), (mean, raw)),
    )


def test_gaussian_log_likelihood_passes_gradcheck():
    x, mean, raw, epsilon = inputs(shape=(2, 2, 3))
    assert torch.autograd.gradcheck(lambda m, r: gaussian_log_likelihood(x, m, r, epsilon), (mean, raw))


def test_gaussian_log_likelihood_in_float32_at_the_coldest_epsilon():
    x, mean, raw, _ = inputs(torch.float32, (15, 8, 784))
    raw = (raw - 12).detach().requires_grad_()
    epsilon = torch.tensor(1e-4)
    found = gaussian_log_likelihood(x, mean, raw, epsilon)
    exact = D.Normal(mean.double(), F.softplus(raw.double()) + 1e-4).log_prob(x.double()).sum(-1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1)
    gradients = torch.autograd.grad(found.sum(), (mean, raw))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_bernoulli_log_likelihood():
    x, logits, _, _ = inputs()
    x = x.round()
    torch.testing.assert_close(
        bernoulli_log_likelihood(x, logits), D.Bernoulli(logits=logits).log_prob(x).sum(-1)
    )


def test_normal_log_density_against_scipy():
    value, mean, std = np.array([0.3, -1.0]), np.array([0.1, 0.2]), np.array([0.5, 2.0])
    found = normal_log_density(*(torch.from_numpy(a) for a in (value, mean, std)))
    assert found.item() == pytest.approx(stats.norm.logpdf(value, mean, std).sum())


def test_sample_categorical_has_the_right_frequencies():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]])
    drawn = sample_categorical(probabilities.log(), 20_000, torch.Generator().manual_seed(1))
    assert drawn.shape == (20_000, 2)
    for row in range(2):
        counts = np.bincount(drawn[:, row].numpy(), minlength=3)
        expected = probabilities[row].double()
        expected = (20_000 * expected / expected.sum()).numpy()
        assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_sample_relaxed_is_the_gumbel_softmax():
    log_probabilities = torch.tensor([[0.1, 0.6, 0.3]]).log()
    generator = torch.Generator().manual_seed(0)
    found = sample_relaxed(log_probabilities, 20_000, 0.7, generator)[:, 0]
    torch.testing.assert_close(found.sum(-1), torch.ones(20_000))
    # The difference of two Gumbel variables is logistic.
    for one, other in ((0, 1), (1, 2), (2, 0)):
        difference = 0.7 * (found[:, one].log() - found[:, other].log())
        centre = (log_probabilities[0, one] - log_probabilities[0, other]).item()
        assert stats.kstest(difference.numpy(), stats.logistic(centre).cdf).pvalue > 1e-3
    corners = sample_relaxed(log_probabilities, 20_000, 1e-3, generator)[:, 0].argmax(-1).bincount() / 20_000
    torch.testing.assert_close(corners, torch.tensor([0.1, 0.6, 0.3]), rtol=0, atol=0.015)


def test_sample_normal_is_reparameterised():
    mean, std = torch.zeros(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
    z = sample_normal(mean, std, torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(z.sum(), (mean, std))
    torch.testing.assert_close(gradients[0], torch.ones(3))
    torch.testing.assert_close(gradients[1], (z / 2).detach())


@pytest.mark.parametrize("width", [(), (3,)])
@pytest.mark.parametrize("places", [(5,), (2, 5)])
def test_the_gradient_of_a_choice_of_clusters_is_that_of_a_gather(places, width):
    """The form for GPUs, whose own would be summed in any order."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (6, *places), generator=generator)
    y[y == 3] = 0  # one cluster is never drawn
    outcomes = []
    for function in (at_clusters, _AtClusters.apply):
        values = torch.randn((4, *places, *width), generator=generator.manual_seed(1)).requires_grad_()
        found = function(values, y)
        found.square().mul(torch.arange(6.0).view(-1, *[1] * (found.ndim - 1))).sum().backward()
        outcomes.append((found.detach(), values.grad))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])
