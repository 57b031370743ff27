"""Renumbering clusters changes their numbers and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from training import inference
from training.config import TrainingConfig
from training.data import describe
from training.export import check_parity
from training.fit import fit
from training.fitted import Fitted
from training.novelty import novelty
from training.onnx_graph import to_onnx
from training.renumber import CLUSTER_PARAMETERS, permute_clusters

ORDER = [2, 0, 3, 1, 4]  # what was cluster 2 becomes cluster 0, ...


def rows() -> np.ndarray:
    random = np.random.default_rng(0)
    return (
        (5 * random.standard_normal((5, 1, 3)) + random.standard_normal((5, 24, 3)))
        .reshape(-1, 3)
        .astype("f4")
    )


def fitted_on(x: np.ndarray, **changes) -> Fitted:
    values = {
        "n_clusters": 5,
        "latent_dim": 2,
        "hidden_sizes": (8,),
        "n_importance_samples": 3,
        "epochs": 2,
        "initialisation": "gmm",
        "pretrain_epochs": 5,
        "gmm_starts": 1,
    }
    fitted = fit(TrainingConfig(**values | changes), x, describe(x))
    return dataclasses.replace(fitted, names=("a", "b", "c", "d", "e"))


@pytest.fixture(scope="module", params=["gmm", "umap", "random", "mean_field"])
def fitted(request):
    changes = {"mean_field": True} if request.param == "mean_field" else {"initialisation": request.param}
    return fitted_on(rows(), **changes)


def test_every_parameter_with_an_axis_of_clusters_is_known():
    """A parameter that comes to the model later must not be forgotten: 7 is no other size of this one."""
    x = rows()
    for mean_field in (False, True):
        model = fitted_on(x, n_clusters=7, epochs=0, initialisation="random", mean_field=mean_field).model
        found = {name for name, value in model.state_dict().items() if 7 in value.shape}
        assert found == set(CLUSTER_PARAMETERS) - ({"z_from_y"} if mean_field else set())
        assert all(model.state_dict()[name].shape[0] == 7 for name in found)


def test_what_the_model_says_is_renumbered_and_otherwise_the_same(fitted):
    x = rows()
    new = permute_clusters(fitted, ORDER)
    np.testing.assert_allclose(
        inference.probabilities(new.model, x), inference.probabilities(fitted.model, x)[:, ORDER], rtol=1e-5
    )
    was = np.array(ORDER)[inference.probabilities(new.model, x).argmax(1)]
    assert (was == inference.probabilities(fitted.model, x).argmax(1)).all()
    np.testing.assert_array_equal(inference.codes(new.model, x), inference.codes(fitted.model, x))
    y = np.arange(5)
    np.testing.assert_array_equal(
        inference.decode(new.model, inference.sample_prior(new.model, y, 3)),
        inference.decode(fitted.model, inference.sample_prior(fitted.model, np.array(ORDER), 3)),
    )
    z = inference.codes(fitted.model, x)
    np.testing.assert_array_equal(
        inference.typicality(new.model, z, y.repeat(24)),
        inference.typicality(fitted.model, z, np.array(ORDER).repeat(24)),
    )
    now, before = torch.arange(5)[:, None].expand(5, len(x)), torch.tensor(ORDER)[:, None].expand(5, len(x))
    with torch.no_grad():
        inputs = fitted.model.preprocess(torch.from_numpy(x))
        hidden = fitted.model.encode(inputs).hidden
        for a, b in zip(new.model.q_z(hidden, now), fitted.model.q_z(hidden, before), strict=True):
            torch.testing.assert_close(a, b)
        z = fitted.model.q_z(hidden, before)[0]
        torch.testing.assert_close(
            new.model.log_joint(inputs, now, z), fitted.model.log_joint(inputs, before, z)
        )


def test_start_and_kept_rows_follow(fitted):
    x = rows()
    new = permute_clusters(fitted, ORDER)
    if fitted.start is not None:
        again = np.array(ORDER)[new.start.predict(new.model, x)]
        np.testing.assert_array_equal(again, fitted.start.predict(fitted.model, x))
    assert new.names == ("c", "a", "d", "b", "e")
    for k, old in enumerate(ORDER):
        np.testing.assert_array_equal(new.rows.typical[k], fitted.rows.typical[old])
        assert new.rows.reference.cluster_shares[k] == fitted.rows.reference.cluster_shares[old]
    np.testing.assert_array_equal(new.rows.mean_confidence, fitted.rows.mean_confidence[ORDER])


def test_novelty_stays_what_it_was(fitted):
    x = np.concatenate([rows(), 100 + rows()])
    new = permute_clusters(fitted, ORDER)
    np.testing.assert_allclose(
        novelty(new.model, new.rows.ranks, x), novelty(fitted.model, fitted.rows.ranks, x), atol=1e-4
    )


def test_there_and_back_is_the_same_to_the_bit(fitted, tmp_path):
    back = permute_clusters(permute_clusters(fitted, ORDER), np.argsort(ORDER).tolist())
    for name, value in fitted.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name
    fitted.save(tmp_path / "a")
    back.save(tmp_path / "b")
    for name in ("model.safetensors", "rows.safetensors", "fit.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_fit_itself_is_left_alone_and_the_new_one_can_be_exported():
    fitted = fitted_on(rows(), epochs=1)
    before = {name: value.clone() for name, value in fitted.model.state_dict().items()}
    new = permute_clusters(fitted, ORDER)
    with torch.no_grad():
        new.model.prior_mean.zero_()
    assert all(torch.equal(value, before[name]) for name, value in fitted.model.state_dict().items())
    assert check_parity(new, to_onnx(new), rows()).equal_argmax_share == 1


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 4, 5]])
def test_what_is_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match=r"each of the clusters 0\.\.4 once"):
        permute_clusters(fitted_on(rows(), epochs=0, initialisation="random"), order)
