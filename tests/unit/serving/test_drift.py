import numpy as np
import pytest
from scipy.stats import entropy

from serving.drift import SMALLEST_SHARE, SlidingCounts, population_stability_index


def test_equal_shares_have_no_drift():
    assert population_stability_index(np.array([10, 30, 60]), np.array([0.1, 0.3, 0.6])) == 0


def test_it_is_the_symmetrised_kullback_leibler_divergence():
    counts, reference = np.array([70, 20, 10]), np.array([0.2, 0.3, 0.5])
    shares = counts / counts.sum()
    expected = entropy(shares, reference) + entropy(reference, shares)
    assert population_stability_index(counts, reference) == pytest.approx(expected)


def test_an_empty_cluster_on_either_side_leaves_it_finite():
    psi = population_stability_index(np.array([100, 0]), np.array([0.0, 1.0]))
    assert psi == pytest.approx(2 * (1 - SMALLEST_SHARE) * np.log(1 / SMALLEST_SHARE))


def test_old_rows_leave_the_window():
    window = SlidingCounts(2, window_rows=100)
    window.add(np.array([40, 0]))
    np.testing.assert_array_equal(window.counts(), [40, 0])
    window.add(np.array([10, 0]))  # a half is full
    window.add(np.array([0, 49]))
    np.testing.assert_array_equal(window.counts(), [50, 49])
    window.add(np.array([0, 1]))  # the next is: the first is forgotten
    np.testing.assert_array_equal(window.counts(), [0, 50])
