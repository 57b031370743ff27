"""The fused heads and density of p(x|z) against torch.distributions and autograd, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as D
from torch import nn
from torch.nn import functional as F

from training import decoding
from training.decoding import bernoulli, decoded_log_likelihood, gaussian

M, B, H, WIDTH = 4, 5, 6, 7
EPSILON = torch.tensor(0.25, dtype=torch.float64)


def case(n_heads: int):
    torch.manual_seed(0)
    heads = [nn.Linear(H, WIDTH).double() for _ in range(n_heads)]
    hidden = (3 * torch.randn(M, B, H, dtype=torch.float64)).requires_grad_()
    return torch.rand(B, WIDTH, dtype=torch.float64), hidden, heads


def plain(x, hidden, heads, epsilon=EPSILON):
    outputs = [head(hidden) for head in heads]
    if len(heads) == 1:
        return (x * outputs[0] - F.softplus(outputs[0])).sum(-1)
    return D.Normal(outputs[0], F.softplus(outputs[1]) + epsilon).log_prob(x).sum(-1)


def gradients(value, weights, hidden, heads):
    leaves = [hidden, *(parameter for head in heads for parameter in head.parameters())]
    return torch.autograd.grad((value * weights).sum(), leaves)


@pytest.mark.parametrize("block", [1, 16, 1 << 16])
@pytest.mark.parametrize("density", [gaussian, bernoulli])
def test_value_and_gradient(density, block, monkeypatch):
    monkeypatch.setattr(decoding, "CACHE_VALUES", block)
    x, hidden, heads = case(2 if density is gaussian else 1)
    weights = torch.linspace(-1, 2, M * B, dtype=torch.float64).reshape(M, B)
    found = decoded_log_likelihood(density, x, hidden, heads, EPSILON)
    expected = plain(x, hidden, heads)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        gradients(found, weights, hidden, heads), gradients(expected, weights, hidden, heads)
    )


@pytest.mark.parametrize("density", [gaussian, bernoulli])
def test_samples_of_no_weight_are_skipped_without_a_trace(density, monkeypatch):
    x, hidden, heads = case(2 if density is gaussian else 1)
    weights = torch.zeros(M, B, dtype=torch.float64)
    weights[0] = torch.rand(B, dtype=torch.float64) + 0.5
    weights[1] = 1e-9
    weights[2, 3] = 0.3
    kept = decoding._weighty(weights)
    assert kept.tolist() == [*range(B), 2 * B + 3]
    found = gradients(decoded_log_likelihood(density, x, hidden, heads, EPSILON), weights, hidden, heads)
    expected = gradients(plain(x, hidden, heads), weights, hidden, heads)
    for part, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-6, atol=1e-6)
    assert (found[0][3] == 0).all()
    assert (found[0][1] == 0).all()


def test_a_gradient_that_is_not_a_number_is_never_skipped():
    x, hidden, heads = case(2)
    weights = torch.zeros(M, B, dtype=torch.float64)
    weights[1, 2] = math.nan
    found = gradients(decoded_log_likelihood(gaussian, x, hidden, heads, EPSILON), weights, hidden, heads)
    assert all(part.isnan().any() for part in found)


def test_gradcheck():
    x, hidden, heads = case(2)
    parameters = [parameter for head in heads for parameter in (head.weight, head.bias)]

    def value(hidden, *_):
        return decoded_log_likelihood(gaussian, x, hidden, heads, EPSILON)

    assert torch.autograd.gradcheck(value, (hidden, *parameters))


def test_float32_at_the_coldest_epsilon_and_under_autocast():
    torch.manual_seed(0)
    heads = [nn.Linear(32, 784), nn.Linear(32, 784)]
    nn.init.constant_(heads[1].bias, -12.0)
    hidden = torch.randn(15, 8, 32).bfloat16().requires_grad_()
    x, epsilon = torch.rand(8, 784), torch.tensor(1e-4)
    exact_heads = [nn.Linear(32, 784).double() for _ in heads]
    for exact, head in zip(exact_heads, heads, strict=True):
        exact.load_state_dict(head.state_dict())
    exact_hidden = hidden.detach().double().requires_grad_()
    exact = plain(x.double(), exact_hidden, exact_heads, epsilon.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = decoded_log_likelihood(gaussian, x, hidden, heads, epsilon)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1)
    weights = torch.rand(15, 8)
    low = gradients(found, weights, hidden, heads)
    for part, whole in zip(low, gradients(exact, weights.double(), exact_hidden, exact_heads), strict=True):
        error = (part.double() - whole).abs().max() / whole.abs().max()
        assert error < 0.02, "bfloat16 rounds to 1/256"
