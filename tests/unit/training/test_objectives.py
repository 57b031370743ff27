"""The estimators against exact enumeration, a long-double reference, and an exactly solvable model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.objectives import (
    enumerated_elbo,
    leave_one_out_bound,
    monte_carlo_bound,
    nvil,
    relaxed_elbo,
    vimco,
)

N_STATES = 4


@pytest.fixture
def toy() -> tuple[Tensor, Tensor]:
    """Logits of q(h) and of p(x, h) for one x and a latent of four states, in float64."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(N_STATES, generator=generator, dtype=torch.float64).requires_grad_()
    p = torch.randn(N_STATES, generator=generator, dtype=torch.float64).requires_grad_()
    return q, p


def tables(toy: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """log q(h) and log w(h) = log p(x, h) - log q(h) for every state."""
    q, p = toy
    log_q = torch.log_softmax(q, 0)
    # p(x, h) need not be normalised over h; a state-dependent scale makes it anything positive.
    return log_q, (p - 0.3) - log_q


def tuples(n_samples: int) -> Tensor:
    """Every tuple of states, ``(M, N_STATES ** M)``."""
    return torch.tensor(list(itertools.product(range(N_STATES), repeat=n_samples))).T


@pytest.mark.parametrize("n_samples", [2, 3, 4])
def test_vimco_expected_gradient_is_the_gradient_of_the_monte_carlo_objective(toy, n_samples):
    states = tuples(n_samples)
    log_q, log_w = tables(toy)
    probability = log_q[states].sum(0).exp()
    exact = (probability * monte_carlo_bound(log_w[states])).sum()
    expected = torch.autograd.grad(exact, toy)

    log_q, log_w = tables(toy)
    objective = vimco(log_w[states], log_q[states])
    estimate = torch.autograd.grad((probability.detach() * objective.surrogate).sum(), toy)

    torch.testing.assert_close(estimate, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close((probability * objective.bound).sum(), exact, rtol=0, atol=1e-12)


def test_vimco_lowers_the_variance_of_the_score_function(toy):
    states = tuples(4)
    log_q, log_w = tables(toy)
    probability = log_q[states].sum(0).exp().detach()

    def variance(surrogates: Tensor) -> float:
        rows = [torch.autograd.grad(s, toy[0], retain_graph=True)[0] for s in surrogates]
        gradients = torch.stack(rows)
        mean = (probability[:, None] * gradients).sum(0)
        return float((probability[:, None] * (gradients - mean).square()).sum())

    bound = monte_carlo_bound(log_w[states])
    plain = bound + (bound.detach() * log_q[states]).sum(0)
    assert variance(vimco(log_w[states], log_q[states]).surrogate) < 0.25 * variance(plain)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_nvil_expected_gradient_is_the_gradient_of_the_elbo_for_any_baseline(toy, n_samples):
    states = tuples(n_samples)
    log_q, log_w = tables(toy)
    expected = torch.autograd.grad((log_q.exp() * log_w).sum(), toy)

    log_q, log_w = tables(toy)
    probability = log_q[states].sum(0).exp().detach()
    baseline = torch.full((states.shape[1],), 0.7, dtype=torch.float64)
    surrogate = nvil(log_w[states], log_q[states], baseline).surrogate
    estimate = torch.autograd.grad((probability * surrogate).sum(), toy)
    torch.testing.assert_close(estimate, expected, rtol=0, atol=1e-6)


def test_nvil_baseline_is_drawn_to_the_mean_of_the_log_weights_and_touches_nothing_else():
    log_weights = torch.tensor([[1.0, 4.0], [3.0, 8.0]], dtype=torch.float64)
    baseline = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_q = torch.zeros_like(log_weights)
    (gradient,) = torch.autograd.grad(nvil(log_weights, log_q, baseline).surrogate.sum(), baseline)
    torch.testing.assert_close(gradient, 2 * log_weights.mean(0))


def test_enumerated_elbo_is_the_exact_elbo_and_gradient(toy):
    log_q, log_w = tables(toy)
    objective = enumerated_elbo(log_w[None, :, None], log_q[:, None])
    exact = (log_q.exp() * log_w).sum()
    torch.testing.assert_close(objective.bound, exact[None])
    torch.testing.assert_close(
        torch.autograd.grad(objective.surrogate.sum(), toy, retain_graph=True),
        torch.autograd.grad(exact, toy),
    )


def test_relaxed_elbo_is_the_exact_elbo_where_y_says_all_there_is():
    # One sample for each y, weighted by hand: log w holds log p(x|y) alone, p(y) being uniform.
    log_p_x = torch.tensor([-3.0, -1.0, -2.5], dtype=torch.float64)
    log_q_y = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    exact = (log_q_y.exp() * (log_p_x - math.log(3) - log_q_y)).sum()
    bounds = [relaxed_elbo(log_p_x[k].view(1, 1), log_q_y[:, None]).bound for k in range(3)]
    torch.testing.assert_close((log_q_y.exp() * torch.cat(bounds)).sum(), exact)


def reference_leave_one_out(log_weights: np.ndarray) -> np.ndarray:
    """The definition, sample by sample, in long double."""
    log_weights = log_weights.astype(np.longdouble)
    n_samples = len(log_weights)
    out = np.empty_like(log_weights)
    for m in range(n_samples):
        others = np.delete(log_weights, m, axis=0)
        replaced = np.concatenate([others, others.mean(axis=0, keepdims=True)])
        top = replaced.max(axis=0)
        top = np.where(np.isfinite(top), top, 0)
        with np.errstate(divide="ignore"):
            out[m] = top + np.log(np.exp(replaced - top).sum(axis=0)) - np.log(np.longdouble(n_samples))
    return out


@pytest.mark.parametrize("n_samples", [2, 5, 15, 50, 1000])
@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 300.0])
def test_leave_one_out_against_long_double(n_samples, spread):
    random = np.random.default_rng(n_samples)
    values = (-1000 + spread * random.standard_normal((n_samples, 64))).astype(np.float32)
    found = leave_one_out_bound(torch.from_numpy(values)).numpy()
    bound = monte_carlo_bound(torch.from_numpy(values)).numpy()
    reference = reference_leave_one_out(values)
    # float32 cannot say more of a number near a thousand than half its last digit, 3e-5.
    np.testing.assert_allclose(found, reference, atol=2e-4, rtol=0)
    # The learning signal, where the thousand has gone, is better than that.
    top = values.max(axis=0).astype(np.longdouble)
    exact = top + np.log(np.exp(values - top).sum(axis=0)) - np.log(np.longdouble(n_samples)) - reference
    np.testing.assert_allclose(bound - found, exact, atol=3e-4, rtol=2e-6)


def test_leave_one_out_where_one_weight_dominates():
    values = np.full((15, 1), -1500.0, np.float32)
    values[7] = -700.0
    found = leave_one_out_bound(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, reference_leave_one_out(values), atol=2e-4, rtol=0)
    # Without the dominant weight the bound is that of the others.
    assert found[7, 0] == pytest.approx(-1500.0, abs=1e-3)


def test_leave_one_out_of_equal_weights_leaves_no_signal():
    log_weights = torch.full((15, 3), -123.25)
    torch.testing.assert_close(leave_one_out_bound(log_weights), log_weights, rtol=0, atol=1e-5)


def test_leave_one_out_with_zero_weights():
    values = np.array([[-math.inf, -math.inf], [-5.0, -math.inf], [-7.0, -3.0]], np.float32)
    found = leave_one_out_bound(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, reference_leave_one_out(values), atol=1e-5)
    assert not np.isnan(found).any()


def test_vimco_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        vimco(torch.zeros(1, 3), torch.zeros(1, 3))
