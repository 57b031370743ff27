"""Gaussian mixtures by scikit-learn, on at most 20,000 points."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from scipy.special import entr
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

MIXTURE_ROWS = 20_000


def fit_mixture(
    points: np.ndarray,
    n_components: int,
    starts: int,
    seed: int,
    covariance: Literal["full", "diag"] = "full",
) -> GaussianMixture:
    """Mixture of ``points (n, L)``, the likeliest of ``starts`` k-means starts."""
    chosen = np.random.default_rng(seed).permutation(len(points))[:MIXTURE_ROWS]
    mixture = GaussianMixture(
        n_components,
        covariance_type=covariance,
        n_init=starts,
        reg_covar=1e-6 * float(points.var()) + 1e-12,
        random_state=seed,
    )
    # The caller may have scikit-learn's array API switched on, which has no k-means start of a mixture.
    with warnings.catch_warnings(), config_context(array_api_dispatch=False):
        # A start that has not settled in 100 steps is still a start; the likelihood ranks it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(points[np.sort(chosen)])


def fit_even_mixture(points: np.ndarray, n_components: int, starts: int, seed: int) -> GaussianMixture:
    """Mixture of ``points (n, L)`` that has the highest `even_score` of ``starts`` k-means starts."""
    seeds = np.random.SeedSequence(seed).generate_state(starts) >> 1
    return max((fit_mixture(points, n_components, 1, int(one)) for one in seeds), key=even_score)


def even_score(mixture: GaussianMixture) -> float:
    """Mean log-likelihood in nats a row and dimension, less the KL divergence of the weights from equal ones.

    In an embedding that draws neighbours together, likelihood is mostly a matter of which dense parts get a
    component of their own: two halves of one cluster gain more of it than two clusters that touch. Taken by
    the dimension it decides only between mixtures that are about as far from the model's p(y) = 1 / K.
    """
    n_components, dimensions = mixture.means_.shape
    divergence = np.log(n_components) - entr(mixture.weights_).sum()
    return float(mixture.lower_bound_ / dimensions - divergence)
