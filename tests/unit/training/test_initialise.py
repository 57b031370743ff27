"""The start: what the autoencoder and the mixture leave in the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from serving.manifest import InputSpec
from training.config import TrainingConfig
from training.divergence import DivergedError
from training.initialise import PRIOR_STD, Start, encode_rows, initialise_gmm, latent_code
from training.model import NVISAModel


@pytest.fixture(scope="module")
def started():
    random = np.random.default_rng(0)
    centres = 4 * random.standard_normal((3, 1, 6))
    x = (centres + random.standard_normal((3, 60, 6))).reshape(-1, 6).astype(np.float32)
    config = TrainingConfig(
        n_clusters=3, latent_dim=2, hidden_sizes=(32,), pretrain_epochs=40, gmm_starts=3, batch_size=30
    )
    torch.manual_seed(0)
    model = NVISAModel(config, InputSpec(dtype="float32", shape=(6,), meaning="features"))
    rows = torch.from_numpy(x)
    model.standardise_as(rows.mean(0), rows.std(0))
    said = []
    start = initialise_gmm(model, rows, config, said.append)
    return model, rows, start, np.repeat(np.arange(3), 60), said


def test_mixture_finds_the_blobs_and_q_of_y_agrees_with_it(started):
    model, rows, start, truth, _ = started
    mixture = start.predict(model, rows.numpy())
    assert adjusted_rand_score(truth, mixture) > 0.9
    with torch.no_grad():
        q = model(rows).argmax(1).numpy()
    assert (q == mixture).mean() > 0.97, "clusters keep the mixture's numbers"


def test_prior_stands_where_the_mixture_does_and_is_as_wide(started):
    model, rows, start, _, _ = started
    torch.testing.assert_close(
        model.prior_mean.detach().double(), torch.from_numpy(start.mixture.means), rtol=1e-5, atol=1e-5
    )
    codes = encode_rows(model, rows)
    within = np.concatenate(
        [codes[start.predict(model, rows.numpy()) == k] - start.mixture.means[k] for k in range(3)]
    )
    assert np.sqrt(np.square(within).mean()) == pytest.approx(PRIOR_STD, rel=0.15)


def test_decoder_still_reconstructs_after_rescaling(started):
    model, rows, _, _, said = started
    with torch.no_grad():
        x = model.preprocess(rows)
        error = (model.x_mean(model.decoder(latent_code(model, x))) - x).square().sum(1).mean().item()
    assert error < 0.35 * 6, "the code explains most of the unit variance of six standardised columns"
    assert "autoencoder epoch 40/40" in said[-1]


def test_q_of_z_starts_independent_of_y(started):
    model, rows, _, _, _ = started
    hidden = model.encode(model.preprocess(rows)).hidden
    mean, _ = model.q_z(hidden, torch.arange(3)[:, None].expand(3, len(rows)))
    assert torch.equal(mean[0], mean[2])


def test_codes_that_are_not_finite_are_a_divergence():
    config = TrainingConfig(
        n_clusters=2, latent_dim=2, hidden_sizes=(8,), pretrain_epochs=2, learning_rate=1e30
    )
    model = NVISAModel(config, InputSpec(dtype="float32", shape=(3,), meaning="features"))
    with pytest.raises(DivergedError, match="codes are not finite: lower learning_rate"):
        initialise_gmm(model, torch.randn(40, 3), config, lambda _: None)


def test_start_round_trips_through_tensors(started):
    model, rows, start, _, _ = started
    again = Start.from_tensors(start.tensors())
    assert (again.predict(model, rows.numpy()) == start.predict(model, rows.numpy())).all()


def test_start_predicts_with_the_pretrained_encoder_whatever_the_model_became(started):
    model, rows, start, _, _ = started
    before = start.predict(model, rows.numpy())
    other = NVISAModel(
        TrainingConfig(n_clusters=3, latent_dim=2, hidden_sizes=(32,)),
        InputSpec(dtype="float32", shape=(6,), meaning="features"),
    )
    other.standardise_as(model.shift, model.scale)
    assert (start.predict(other, rows.numpy()) == before).all()
