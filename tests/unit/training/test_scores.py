"""Scores against brute force over every matching, scikit-learn's definitions, and hand-made cases."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from training.scores import Scores, accuracy, match_classes, render, score


def best_by_brute_force(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Try every injection of the smaller set into the larger one."""
    classes, ids = sorted(set(labels.tolist())), sorted(set(clusters.tolist()))
    size = max(len(classes), len(ids))
    padded = classes + [None] * (size - len(classes))
    best = 0
    for chosen in itertools.permutations(padded, len(ids)):
        meaning = dict(zip(ids, chosen, strict=True))
        best = max(
            best,
            sum(meaning[c] == label for c, label in zip(clusters.tolist(), labels.tolist(), strict=True)),
        )
    return best / len(labels)


def pairs_ari(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Hubert and Arabie's index from its definition, by counting pairs of rows."""
    pairs = list(itertools.combinations(range(len(labels)), 2))
    same_class = np.array([labels[i] == labels[j] for i, j in pairs])
    same_cluster = np.array([clusters[i] == clusters[j] for i, j in pairs])
    both = (same_class & same_cluster).sum()
    expected = same_class.sum() * same_cluster.sum() / len(pairs)
    largest = (same_class.sum() + same_cluster.sum()) / 2
    return 1.0 if largest == expected else float((both - expected) / (largest - expected))


rows = st.integers(2, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
    )
)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_accuracy_and_ari_agree_with_their_definitions(drawn):
    labels, clusters = (np.array(values) for values in drawn)
    got = score(clusters, 6, labels=labels)
    assert got.acc == pytest.approx(best_by_brute_force(labels, clusters))
    assert got.ari == pytest.approx(pairs_ari(labels, clusters))


@settings(max_examples=60, deadline=None)
@given(rows)
def test_the_matching_yields_the_accuracy_and_is_one_to_one(drawn):
    labels, clusters = (np.array(values) for values in drawn)
    mapping = match_classes(labels, clusters)
    assert len(set(mapping.values())) == len(mapping)
    right = sum(mapping.get(c) == label for c, label in zip(clusters.tolist(), labels.tolist(), strict=True))
    assert right / len(labels) == pytest.approx(accuracy(labels, clusters))


def test_nmi_is_the_mutual_information_over_the_mean_entropy():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200)
    clusters = np.where(generator.random(200) < 0.7, labels, generator.integers(0, 5, 200))
    entropies = [mutual_info_score(values, values) for values in (labels, clusters)]
    expected = mutual_info_score(labels, clusters) / np.mean(entropies)
    assert score(clusters, 5, labels=labels).nmi == pytest.approx(expected)


def test_a_renumbered_clustering_is_perfect_and_labels_may_be_text():
    labels = np.array(["cat", "dog", "eel"] * 5)
    clusters = np.array([7, 0, 3] * 5)
    got = score(clusters, 10, labels=labels, confidences=np.linspace(0.5, 1.0, 15))
    assert (got.acc, got.nmi, got.ari) == (1.0, pytest.approx(1.0), 1.0)
    assert match_classes(labels, clusters) == {0: "dog", 3: "eel", 7: "cat"}
    assert got.mean_confidence == pytest.approx(0.75)
    assert got.cluster_sizes == (5, 0, 0, 5, 0, 0, 0, 5, 0, 0)
    assert got.empty_clusters == (1, 2, 4, 5, 6, 8, 9)


def test_clusters_left_over_count_as_wrong():
    labels = np.array([0, 0, 0, 0, 1, 1])
    clusters = np.array([0, 0, 0, 1, 2, 2])
    assert accuracy(labels, clusters) == pytest.approx(5 / 6)
    assert match_classes(labels, clusters) == {0: 0, 2: 1}


def test_one_cluster_for_everything():
    got = score(np.zeros(6, int), 3, labels=np.array([0, 0, 0, 1, 1, 2]))
    assert got.acc == pytest.approx(0.5)
    assert got.nmi == pytest.approx(0.0, abs=1e-12)
    assert got.ari == pytest.approx(0.0, abs=1e-12)


def test_without_labels_the_label_scores_are_null():
    got = score([0, 1, 1], 2)
    assert json.loads(got.model_dump_json()) == {
        "acc": None,
        "nmi": None,
        "ari": None,
        "n_rows": 3,
        "cluster_sizes": [1, 2],
        "empty_clusters": [],
        "mean_confidence": None,
    }
    assert "ACC" not in render(got)


def test_the_table_shows_every_number_and_stays_narrow():
    sizes = np.arange(100) * 1000
    scores = Scores(
        acc=0.98765,
        nmi=0.9,
        ari=0.8,
        n_rows=int(sizes.sum()),
        cluster_sizes=tuple(sizes.tolist()),
        empty_clusters=(0,),
        mean_confidence=0.95,
    )
    text = str(scores)
    assert "ACC               0.9877" in text
    assert "empty clusters    1 (0)\n" in text
    assert " 99: 99,000" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("clusters", "options", "message"),
    [
        ([], {}, "at least one row"),
        ([[0, 1]], {}, "vector"),
        ([0.0, 1.0], {}, "integers"),
        ([0, 3], {}, r"from 0 to 3, expected \[0, 3\)"),
        ([-1, 0], {}, "from -1 to 0"),
        ([0, 1], {"labels": [0]}, "one length"),
        ([0, 1], {"confidences": [0.5]}, r"shape \(2,\), got \(1,\)"),
    ],
)
def test_bad_input_is_named(clusters, options, message):
    with pytest.raises(ValueError, match=message):
        score(clusters, 3, **options)
