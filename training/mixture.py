"""Gaussian mixtures by scikit-learn, on at most 20,000 points."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
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
