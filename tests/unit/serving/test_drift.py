import numpy as np
import pytest
from scipy.stats import entropy

from serving.drift import SMALLEST_SHARE, SlidingCounts, noise_of_index, population_stability_index


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


@pytest.mark.parametrize(("n_clusters", "live_rows", "reference_rows"), [(10, 1000, 5000), (50, 2000, 2000)])
def test_the_noise_is_what_the_index_shows_on_average_without_drift(n_clusters, live_rows, reference_rows):
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(n_clusters, 20.0))
    live = rng.multinomial(live_rows, truth, size=2000)
    reference = rng.multinomial(reference_rows, truth, size=2000) / reference_rows
    shown = [population_stability_index(*pair) for pair in zip(live, reference, strict=True)]
    assert noise_of_index(n_clusters, live_rows, reference_rows) == pytest.approx(np.mean(shown), rel=0.1)
