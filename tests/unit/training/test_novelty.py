"""Novelty: its energy against torch.distributions, its ranks against numpy, and what must never break."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from training.config import TrainingConfig
from training.data import describe
from training.model import NVISAModel
from training.novelty import LEVELS, NoveltyHead, Ranks, Terms, calibrate, cost_ratio, novelty, terms

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(400, 5, 4), dtype=np.uint8)
FEATURES = (RNG.standard_normal((400, 6)) * [1, 10, 100, 1, 1, 0.1] + 3).astype(np.float32)


def model_of(x: np.ndarray, **changes) -> NVISAModel:
    values = {"n_clusters": 3, "latent_dim": 2, "hidden_sizes": (8, 7), "n_importance_samples": 2}
    torch.manual_seed(0)
    model = NVISAModel(TrainingConfig(**values | changes), describe(x)).eval()
    if x.dtype == np.float32:
        rows = torch.from_numpy(x)
        model.standardise_as(rows.mean(0), rows.std(0))
    return model


CASES = [
    (IMAGES, {}),
    (FEATURES, {}),
    (IMAGES, {"likelihood": "bernoulli"}),
    (FEATURES, {"mean_field": True}),
    (np.repeat(IMAGES, 4, 1), {"network": "conv"}),
]


@pytest.mark.parametrize(("x", "changes"), CASES)
@torch.no_grad()
def test_the_energy_is_minus_the_bound_at_the_mean_of_z_with_one_std_up_to_a_constant(x, changes):
    model = model_of(x, **changes)
    rows = model.preprocess(torch.from_numpy(x))
    sigma = 0.3
    hidden, log_q_y = model.encode(rows)
    y = log_q_y.argmax(1)
    z, std = model.q_z(hidden, y)
    mean = model.x_mean(model.decoder(z))
    if "likelihood" in changes:
        mean = torch.sigmoid(mean)
    bound = (
        Normal(mean, sigma).log_prob(rows).sum(1)
        + Normal(*model.p_z(y)).log_prob(z).sum(1)
        - math.log(3)
        - Normal(z, std).log_prob(z).sum(1)
        - Categorical(logits=log_q_y).log_prob(y)
    )
    constant = rows.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi)) + math.log(3)
    energy = terms(model, rows).energy(sigma)
    torch.testing.assert_close(energy, -bound - constant, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("x", [IMAGES, FEATURES])
def test_it_is_the_rank_among_the_training_rows(x):
    model = model_of(x)
    ranks = calibrate(model, x)
    found = terms(model, model.preprocess(torch.from_numpy(x)))
    sigma2 = (found.squared_error.double().mean() / found.squared_error.new_tensor(x[0].size)).item()
    assert ranks.sigma == pytest.approx(math.sqrt(sigma2))
    assert ranks.rows == len(x)
    energy = found.energy(ranks.sigma).detach().numpy()
    got = novelty(model, ranks, x)
    expected = np.searchsorted(np.sort(energy), energy) / (len(x) - 1)
    # Linear between the levels kept, which are nowhere further apart than 2 / 256.
    np.testing.assert_allclose(got, expected, atol=2 / 256 + 2 / len(x))
    assert got.max() == pytest.approx(1, abs=1e-6)
    assert got.min() == 0


def test_ranks_are_one_sided_and_end_at_zero_and_one():
    ranks = Ranks(1.0, np.sort(RNG.normal(size=len(LEVELS)) * 5).astype(np.float32), 1000)
    energy = torch.linspace(-30, 30, 501)
    found = Terms(torch.zeros(501, 2), torch.zeros(501, dtype=torch.int64), torch.zeros(501), -energy)
    got = NoveltyHead(ranks)(found).numpy()
    np.testing.assert_allclose(got, np.interp(energy.numpy(), ranks.energies, LEVELS), atol=1e-5)
    assert got[0] == 0
    assert got[-1] == pytest.approx(1, abs=1e-6)


def test_an_energy_that_is_no_number_is_as_novel_as_can_be():
    ranks = Ranks(1.0, np.arange(len(LEVELS), dtype=np.float32), 1000)
    wild = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38])
    found = Terms(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64), torch.zeros(5), -wild)
    np.testing.assert_allclose(NoveltyHead(ranks)(found).numpy(), [1, 1, 0, 1, 0], atol=1e-6)


def test_rows_far_from_all_training_rows_are_novel_and_finite_however_far():
    model = model_of(FEATURES)
    ranks = calibrate(model, FEATURES)
    for factor in (1e2, 1e6, 1e30, 3e38):
        far = np.full((3, 6), factor, np.float32)
        np.testing.assert_allclose(novelty(model, ranks, far), 1, atol=1e-6)


def test_rows_that_occur_many_times_get_one_rank_and_not_a_jump():
    x = np.concatenate([np.zeros((300, 5, 4), np.uint8), IMAGES[:100]])
    model = model_of(x, n_clusters=1)
    ranks = calibrate(model, x)
    assert (np.diff(ranks.energies) > 0).all()
    energy = terms(model, model.preprocess(torch.from_numpy(x[:1]))).energy(ranks.sigma)
    same = terms(model, model.preprocess(torch.from_numpy(x[:1])))
    ranked = [
        NoveltyHead(ranks)(same._replace(log_ratio=same.log_ratio + energy.abs() * error)).item()
        for error in (0.0, 1e-6, -1e-6)
    ]
    assert np.ptp(ranked) < 5e-3


def test_an_outlier_among_the_training_rows_leaves_the_other_ranks_alone():
    x = FEATURES.copy()
    model = model_of(x, n_clusters=1)
    plain = novelty(model, calibrate(model, x), x[1:])
    x[0] *= 1e6
    ranks = calibrate(model, x)
    energy = terms(model, model.preprocess(torch.from_numpy(x[1:]))).energy(ranks.sigma).detach().numpy()
    got = novelty(model, ranks, x[1:])
    expected = np.searchsorted(np.sort(energy), energy) / len(energy)
    np.testing.assert_allclose(got, expected, atol=0.03)
    assert np.ptp(plain) > 0.9


def test_training_rows_that_the_model_overflows_on_are_the_farthest_and_spoil_nothing():
    model = model_of(FEATURES, n_clusters=1)
    x = FEATURES.copy()
    x[:4] = 1e36
    ranks = calibrate(model, x)
    assert np.isfinite(ranks.energies).all()
    found = novelty(model, ranks, x)
    assert (found[:4] > 0.98).all()
    np.testing.assert_allclose(np.sort(found[4:]), np.linspace(0, 0.99, 396), atol=0.02)


def test_training_rows_that_are_all_alike_are_like_the_training_rows():
    x = np.full((200, 5, 4), 7, np.uint8)
    model = model_of(x, n_clusters=1)
    found = novelty(model, calibrate(model, x), np.concatenate([x[:2], IMAGES[:2]]))
    assert np.isfinite(found).all()
    assert (found[:2] < 0.05).all()
    assert (found[2:] > 0.95).all()


def test_the_cost_is_the_ratio_of_multiply_accumulates():
    hidden = 20 * 8 + 8 * 7
    without = hidden + 7 * 3
    z = 7 * 7 + 3 * 7 + 2 * 7 * 2  # the shared layer, y's vector by a product, mean and std
    decoder = 2 * 7 + 7 * 8 + 8 * 20
    assert cost_ratio(model_of(IMAGES)) == pytest.approx((without + z + decoder) / without)
