import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from serving.matching import matched_rows


def best(counts):
    return counts[linear_sum_assignment(counts, maximize=True)].sum()


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 7), (7, 3), (10, 10), (40, 40)])
@pytest.mark.parametrize("most", [1, 5, 10**6])
def test_it_is_scipys_matching(shape, most):
    rng = np.random.default_rng(most + sum(shape))
    for _ in range(5):
        counts = rng.integers(0, most + 1, shape)
        assert matched_rows(counts) == best(counts)


def test_a_renumbered_clustering_matches_itself():
    rng = np.random.default_rng(0)
    counts = np.diag(rng.integers(1, 1000, 30))[:, rng.permutation(30)]
    assert matched_rows(counts) == counts.sum()


def test_large_counts_do_not_overflow():
    counts = np.full((4, 4), 2**53) + np.diag([1, 2, 3, 4])
    assert matched_rows(counts) == 4 * 2**53 + 10
