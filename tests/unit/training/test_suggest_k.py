"""``suggest-k``: blobs are counted, a cloud is called one, and the words are as careful as the numbers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from training import cluster_count
from training.cli import main
from training.cluster_count import MOST_ROWS, Measure, gaussian_cloud, preprocessed, subsample
from training.config import EmbeddingMetric
from training.count import Count, count_clusters
from training.data import Data, describe
from training.embedding import comparable
from training.report import plot_cluster_count
from training.settings import SuggestKSettings
from training.suggestion import LIMITS, suggest, table


def count(x: np.ndarray, ks: range, rows: int = 300, metric: EmbeddingMetric = "euclidean") -> Count:
    x = x.astype(np.float32)
    loaded = Data(x, describe(x), None, "toy.npy", "f" * 64)
    return count_clusters(
        loaded,
        ks,
        rows=rows,
        n_neighbors=10,
        embedding_metric=metric,
        starts=2,
        repeats=3,
        seed=0,
        say=lambda _: None,
    )


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    return make_blobs(240, centers=4, n_features=3, random_state=3)[0].astype(np.float32)


def test_blobs_are_counted_by_every_criterion(blobs):
    found = count(blobs, range(2, 7))
    assert found.suggestion.structure
    assert found.suggestion.by_criterion == {"bic": 4, "silhouette": 4, "stability": 4}
    assert found.suggestion.suggested == (4,)
    text = str(found)
    assert "All three criteria say 4 clusters." in text
    assert "fit the candidates" in text.replace("\n", " ")
    assert text.count("*") == 3


def test_a_cloud_has_no_structure():
    cloud = np.random.default_rng(0).standard_normal((240, 3)) * [3, 1, 1]
    found = count(cloud, range(2, 6))
    assert not found.suggestion.structure
    assert found.suggestion.suggested == ()
    assert "No structure found" in str(found)
    assert "*" not in str(found)


def test_rows_that_differ_in_direction_are_counted_by_the_cosine():
    rng = np.random.default_rng(0)
    directions = np.concatenate([np.eye(3), -np.eye(3)[:1]])[rng.integers(0, 4, 240)]
    rays = (directions + 0.05 * rng.standard_normal((240, 3))) * rng.lognormal(0, 1.5, (240, 1))
    found = count(rays, range(2, 7), metric="cosine")
    assert found.embedding_metric == "cosine"
    assert found.suggestion.by_criterion["silhouette"] == 4
    assert count(rays, range(2, 7)).suggestion.by_criterion["silhouette"] != 4, (
        "by their distance they are no clusters"
    )


def measures(silhouettes, bics, stabilities, std=0.0, cloud=0.2, first=2) -> list[Measure]:
    return [
        Measure(
            k=k,
            bic=bic,
            silhouette=silhouette,
            stability=stability,
            stability_std=std,
            cloud_silhouette=cloud,
            cloud_stability=0.2,
        )
        for k, (silhouette, bic, stability) in enumerate(
            zip(silhouettes, bics, stabilities, strict=True), first
        )
    ]


def test_criteria_that_disagree_are_each_named():
    found = suggest(measures([0.5, 0.6, 0.5, 0.4, 0.3], [9, 8, 7, 6, 8], [0.9, 0.9, 0.95, 0.6, 0.5]))
    assert found.by_criterion == {"bic": 5, "silhouette": 3, "stability": 4}
    assert found.suggested == (3, 4, 5)
    assert found.words[0] == (
        "The criteria disagree: BIC says 5, the silhouette says 3, stability says 4. "
        "None of them is to be trusted alone."
    )
    assert found.words[-1] == LIMITS


def test_most_votes_come_first():
    found = suggest(measures([0.5, 0.6, 0.5, 0.4], [9, 8, 6, 7], [0.9, 0.7, 0.9, 0.6]))
    assert found.suggested == (4, 3)
    assert found.words[0] == "Two of three criteria say 4 clusters; the silhouette says 3."


def test_stability_takes_the_largest_k_that_is_as_stable_as_the_best():
    nearly = [0.99, 1.0, 0.985, 0.9]
    assert suggest(measures([0.5] * 4, [4, 3, 2, 1], nearly)).by_criterion["stability"] == 4
    assert suggest(measures([0.5] * 4, [4, 3, 2, 1], nearly, std=0.3)).by_criterion["stability"] == 4, (
        "a best K that is itself uncertain is no licence for any"
    )


def test_what_is_doubtful_is_said():
    words = " ".join(suggest(measures([0.5, 0.4, 0.3], [3, 2, 1], [0.5, 0.4, 0.2])).words)
    assert "BIC is still falling at K = 4" in words
    assert "silhouette the best K, 2, is at the end of the range" in words
    assert "No K is stable (ARI at most 0.50)" in words
    assert "end of the range" not in " ".join(
        suggest(measures([0.3, 0.5, 0.3], [3, 1, 2], [0.5, 0.9, 0.2])).words
    )


def test_one_k_alone_and_a_missing_silhouette():
    alone = measures([float("nan")], [3.0], [0.9], cloud=float("nan"))
    found = suggest(alone)
    assert found.by_criterion == {"bic": 2, "silhouette": 2, "stability": 2}
    assert not found.structure
    assert "nan" in table(alone, found)


def test_picture_copes_with_gaps_and_a_single_k(tmp_path):
    for columns in (
        measures([0.5, float("nan"), 0.3], [3, 2, 1], [0.5, 0.4, 0.2]),
        measures([0.5], [3], [0.9]),
    ):
        values = {name: [getattr(m, name) for m in columns] for name in Measure.model_fields}
        path = plot_cluster_count(tmp_path / "k.png", values, {"bic": 2}, 100, "How many?")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_rows_are_prepared_as_a_model_does():
    x = np.random.default_rng(0).normal([5, 0, 3], [2, 1, 0], (60, 3)).astype(np.float32)
    flat = preprocessed(x, describe(x))
    np.testing.assert_allclose(flat[:, :2].std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(flat[:, 2], 0, atol=1e-6)
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.testing.assert_allclose(preprocessed(images, describe(images)), (images.reshape(3, 4) + 0.5) / 256)


def test_cloud_has_the_covariance_of_the_rows_and_no_clusters(blobs):
    cloud = gaussian_cloud(comparable(blobs, "euclidean", 0), 0)
    assert cloud.shape == blobs.shape
    expected = np.linalg.eigvalsh(np.cov(blobs.T))
    np.testing.assert_allclose(np.sort(cloud.var(0)), expected, rtol=0.3)
    assert count(cloud, range(4, 5)).measures[0].silhouette < 0.4


def test_subsample_is_random_in_order_and_the_same_again():
    x = np.arange(1000)
    part = subsample(x, 100, 3)
    assert len(part) == len(set(part)) == 100
    assert (np.diff(part) > 0).all()
    assert (part == subsample(x, 100, 3)).all()
    assert (subsample(x, 1000, 3) == x).all()


def test_most_rows_are_those_of_the_setting():
    assert SuggestKSettings.model_fields["rows"].default == MOST_ROWS


@pytest.fixture
def file(blobs, tmp_path):
    np.save(tmp_path / "x.npy", blobs)
    return str(tmp_path / "x.npy")


def test_command_writes_table_picture_and_document(file, tmp_path, capsys):
    arguments = ["suggest-k", file, "--from", "3", "--to", "5", "--rows", "200", "--repeats", "3"]
    arguments += ["--output", str(tmp_path / "k")]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "200 of 240 rows are used, drawn at random" in captured.err
    assert "All three criteria say 4 clusters." in captured.out
    assert "(200 of 240 rows, at random)" in captured.out
    assert {path.name for path in (tmp_path / "k").iterdir()} == {"suggest-k.png", "suggest-k.json"}
    document = json.loads((tmp_path / "k" / "suggest-k.json").read_text())
    assert [measure["k"] for measure in document["measures"]] == [3, 4, 5]
    assert (document["rows"], document["rows_used"]) == (240, 200)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document, "the seed decides everything"


def test_interrupted_it_leaves_nothing(file, tmp_path, monkeypatch, capsys):
    real, calls = cluster_count.fit_mixture, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(cluster_count, "fit_mixture", stopped)
    assert main(["suggest-k", file, "--from", "3", "--to", "5", "--output", str(tmp_path / "k")]) == 130
    assert capsys.readouterr().err.endswith("nvisa-train suggest-k: interrupted\n")
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "6", "--to", "5"], "--from 6 is more than --to 5"),
        (["--from", "1", "--to", "5"], "--from 1: with fewer than 2 clusters"),
        (["--from", "2", "--to", "121"], "--to 121 needs at least 242 rows.* and there are 240"),
        (["--to", "5", "--rows", "30000"], "--rows: Input should be less than or equal to 20000"),
        (["--to", "many"], "--to: Input should be a valid integer"),
    ],
)
def test_ranges_that_cannot_be_are_explained(file, arguments, message, tmp_path, capsys):
    assert main(["suggest-k", file, *arguments, "--output", str(tmp_path / "k")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert not (tmp_path / "k").exists()
