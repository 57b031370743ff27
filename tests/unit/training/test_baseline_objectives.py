"""The baselines' objectives against sums over grids, naive loops, scipy, and the papers' gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.mixture import GaussianMixture
from torch.distributions import Normal, kl_divergence

from training.baselines import dec, vade, vae
from training.baselines.autoencoder import fit_n2d
from training.baselines.begin import LEAST_STD, begin
from training.baselines.gmvae import GMVAE
from training.baselines.manifold import UmapMixture, fit_umap_mixture
from training.baselines.plain import fit_pca_umap_gmm
from training.config import TrainingConfig
from training.initialise import encode_rows, latent_code

CONFIG = TrainingConfig(n_clusters=3, latent_dim=1, hidden_sizes=(8,), gmm_starts=1, seed=1)
GRID = np.linspace(-12, 12, 2401)
STEP = GRID[1] - GRID[0]


def quiet(_: str) -> None:
    pass


def model_of(x, config=CONFIG):
    model, _ = begin(x, config, quiet)
    return model


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


@pytest.fixture
def prior():
    mixture = GaussianMixture(3, covariance_type="diag")
    mixture.weights_ = np.array([0.2, 0.5, 0.3])
    mixture.means_ = np.array([[-1.0], [0.5], [2.0]])
    mixture.covariances_ = np.array([[0.5], [1.5], [0.2]])
    return vade.MixturePrior(mixture)


def log_evidence(model, x, log_prior):
    """log p(x) of each row by a sum over the grid of z; ``log_prior`` is log p(z) there."""
    z = torch.as_tensor(GRID, dtype=torch.float32)[:, None, None].expand(-1, len(x), -1)
    with torch.no_grad():
        log_p_x = vae.log_p_x(model, x, z).double().numpy()
    return logsumexp(log_p_x + log_prior[:, None], axis=0) + math.log(STEP)


def test_student_t_and_target_are_the_papers_sums():
    random = np.random.default_rng(0)
    z, m = random.standard_normal((7, 2)), random.standard_normal((3, 2))
    q = dec.soft_assignment(torch.tensor(z), torch.tensor(m)).numpy()
    p = dec.target_distribution(torch.tensor(q)).numpy()
    naive_q = np.zeros((7, 3))
    for i in range(7):
        kernel = [(1 + sum((z[i, d] - m[j, d]) ** 2 for d in range(2))) ** -1 for j in range(3)]
        naive_q[i] = np.array(kernel) / sum(kernel)
    frequency = [sum(naive_q[i, j] for i in range(7)) for j in range(3)]
    naive_p = np.array([[naive_q[i, j] ** 2 / frequency[j] for j in range(3)] for i in range(7)])
    naive_p /= naive_p.sum(1, keepdims=True)
    np.testing.assert_allclose(q, naive_q)
    np.testing.assert_allclose(p, naive_p)
    assert (dec.NearestCentre(m).predict(z) == q.argmax(1)).all()


def test_dec_gradients_are_the_papers():
    """Equations 4 and 5 of Xie et al. with one degree of freedom."""
    random = np.random.default_rng(1)
    z = torch.tensor(random.standard_normal((6, 2)), requires_grad=True)
    m = torch.tensor(random.standard_normal((3, 2)), requires_grad=True)
    q = dec.soft_assignment(z, m)
    p = dec.target_distribution(q.detach())
    dec.divergence(q, p).sum().backward()
    difference = z.detach()[:, None] - m.detach()
    weight = (p - q.detach()) / (1 + difference.square().sum(-1))
    torch.testing.assert_close(z.grad, 2 * (weight[..., None] * difference).sum(1))
    torch.testing.assert_close(m.grad, -2 * (weight[..., None] * difference).sum(0))


def test_vade_divergence_is_a_sum_over_clusters_and_z(prior):
    mean, std = torch.tensor([[0.3], [-2.0]]), torch.tensor([[0.4], [1.1]])
    gamma = np.array([[0.1, 0.7, 0.2], [0.8, 0.15, 0.05]])
    found = vade.divergence(prior, mean, std, torch.tensor(gamma, dtype=torch.float32).log())
    weights, means, stds = [0.2, 0.5, 0.3], [-1.0, 0.5, 2.0], np.sqrt([0.5, 1.5, 0.2])
    for row in range(2):
        log_q = norm.logpdf(GRID, mean[row].item(), std[row].item())
        total = sum(
            gamma[row, c]
            * np.exp(log_q)
            * (log_q + np.log(gamma[row, c]) - np.log(weights[c]) - norm.logpdf(GRID, means[c], stds[c]))
            for c in range(3)
        ).sum()
        assert found[row].item() == pytest.approx(total * STEP, abs=1e-4)


def test_vades_clusters_are_those_of_its_prior(prior):
    z = np.linspace(-4, 4, 50)[:, None]
    parts = [(0.2, -1.0, 0.5), (0.5, 0.5, 1.5), (0.3, 2.0, 0.2)]
    expected = np.stack([w * norm.pdf(z[:, 0], m, v**0.5) for w, m, v in parts], 1)
    with torch.no_grad():
        found = prior.log_joint(torch.tensor(z, dtype=torch.float32)).exp().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    mixture = prior.mixture()
    assert (mixture.predict(z) == expected.argmax(1)).all()
    np.testing.assert_allclose(mixture.score_samples(z), np.log(expected.sum(1)), rtol=1e-5)


@pytest.mark.parametrize("images", [False, True])
def test_bounds_stay_under_log_p_of_x(features, prior, images):
    """Both are bounds whatever the parameters, and log p(x) is a sum over z; the mean of 4,000 draws."""
    x_raw = (features > 0).astype(np.uint8) * 255 if images else features
    config = CONFIG.model_copy(update={"likelihood": "bernoulli"}) if images else CONFIG
    model = model_of(x_raw, config)
    x = model.preprocess(torch.from_numpy(x_raw[:6]))
    many = x.repeat(4000, 1)
    with torch.no_grad():
        of_vae = vae.elbo(model, many, torch.Generator().manual_seed(0)).view(4000, 6).mean(0).numpy()
        of_vade = vade.elbo(model, prior, many, torch.Generator().manual_seed(0)).view(4000, 6).mean(0)
    standard = log_evidence(model, x, norm.logpdf(GRID))
    mixture = log_evidence(model, x, prior.mixture().score_samples(GRID[:, None]))
    assert (of_vae < standard).all()
    assert (of_vae > standard - 10).all(), "not by much"
    assert (of_vade.numpy() < mixture).all()
    assert (of_vade.numpy() > mixture - 10).all()


def test_a_vaes_mean_is_the_autoencoders_code(features):
    model = model_of(features)
    x = model.preprocess(torch.from_numpy(features))
    mean, std = vae.q_z(model, model.encoder(x))
    torch.testing.assert_close(mean, latent_code(model, x))
    assert (std > LEAST_STD).all()
    torch.testing.assert_close(
        vae.kl_from_standard(mean, std), kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(-1)
    )


def test_features_have_unit_variance_given_z(features):
    model = model_of(features)
    x, z = model.preprocess(torch.from_numpy(features)), torch.randn(2, 20, 1)
    with torch.no_grad():
        mean = model.x_mean(model.decoder(z)).numpy()
        found = vae.log_p_x(model, x, z).numpy()
    np.testing.assert_allclose(found, norm.logpdf(x.numpy(), mean).sum(-1), rtol=1e-5)


def test_gmvae_terms_are_sums_over_z_w_and_y(features):
    """Each term's mean over draws, against its definition summed over a grid of z and w."""
    torch.manual_seed(0)
    gmvae = GMVAE(model_of(features), 3)
    x = gmvae.vae.preprocess(torch.from_numpy(features[:1]))
    with torch.no_grad():
        draws = gmvae.terms(x.expand(200_000, -1), torch.Generator().manual_seed(0))
        q = gmvae.q(x)
        grid = torch.linspace(-8, 8, 321)
        q_of_z, q_of_w = Normal(q.z_mean[0, 0], q.z_std[0, 0]), Normal(q.w_mean[0, 0], q.w_std[0, 0])
        weight = (q_of_z.log_prob(grid)[:, None] + q_of_w.log_prob(grid)).exp()  # [z, w]
        weight /= weight.sum()
        mean, std = (value.squeeze(-1) for value in gmvae.p_z(grid[:, None]))  # [w, y]
        y = Normal(mean, std).log_prob(grid[:, None, None]).double().softmax(-1)  # [z, w, y]
        kl_z = kl_divergence(q_of_z, Normal(mean, std))  # [w, y]
        expected = {
            "z": (weight[..., None] * y * kl_z).sum(),
            "w": kl_divergence(q_of_w, Normal(0.0, 1.0)),
            "y": (weight[..., None] * y * torch.log(3 * y.clamp_min(1e-300))).sum(),
            "reconstruction": (weight.sum(1) * vae.log_p_x(gmvae.vae, x, grid[:, None, None])[:, 0]).sum(),
        }
    for name, value in expected.items():
        values = getattr(draws, name).double()
        error = 5 * values.std().item() / math.sqrt(len(values)) + 1e-4 * abs(value.item())
        assert values.mean().item() == pytest.approx(value.item(), abs=error), name


def test_gmvae_assigns_by_the_posterior_at_the_means(features):
    torch.manual_seed(0)
    gmvae = GMVAE(model_of(features), 3)
    x = gmvae.vae.preprocess(torch.from_numpy(features))
    with torch.no_grad():
        q = gmvae.q(x)
        mean, std = (value.squeeze(-1).numpy() for value in gmvae.p_z(q.w_mean))
        density = norm.pdf(q.z_mean.numpy(), mean, std)
        np.testing.assert_allclose(
            gmvae(x).numpy(), density / density.sum(1, keepdims=True), rtol=1e-4, atol=1e-7
        )


def test_umap_gives_its_training_rows_their_own_places():
    x = np.random.default_rng(0).standard_normal((60, 30)).astype(np.float32)
    config = CONFIG.model_copy(update={"latent_dim": 3, "pretrain_epochs": 1})
    by_pca, by_codes = fit_pca_umap_gmm(x, config, quiet), fit_n2d(x, config, quiet)
    placed = by_pca.assigner.assigner
    assert (by_pca.predict(x) == placed.mixture.predict(placed.umap.embedding_.astype(float))).all()
    placed = by_codes.assigner
    assert placed.umap.embedding_.shape == (60, 10)
    assert (by_codes.predict(x) == placed.mixture.predict(placed.umap.embedding_.astype(float))).all()


def test_too_few_points_for_a_graph_stay_where_they_are():
    points = np.random.default_rng(0).standard_normal((12, 20))
    assigner = fit_umap_mixture(points, CONFIG, quiet, reduce=True)
    assert isinstance(assigner, UmapMixture)
    assert assigner.umap is None
    assert (assigner.predict(points) == assigner.mixture.predict(points)).all()


def test_dec_stops_when_its_clusters_have_settled():
    random = np.random.default_rng(0)
    x = (8 * np.eye(3)[np.repeat(np.arange(3), 30)] + random.standard_normal((90, 3))).astype(np.float32)
    said = []
    config = CONFIG.model_copy(update={"pretrain_epochs": 20, "epochs": 50, "latent_dim": 2})
    clusterer = dec.fit_dec(x, config, said.append)
    assert "settled" in said[-1]
    codes = encode_rows(clusterer.model, torch.from_numpy(x))
    assert (clusterer.assigner.predict(codes) == clusterer.predict(x)).all()
