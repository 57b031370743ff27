"""What a user would pick instead of NVISA, on the same rows, networks and seeds.

Labels reach none of them. Each is deterministic for a seed, up to a GPU's own rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.baselines.autoencoder import fit_ae_gmm, fit_n2d
from training.baselines.clusterer import Clusterer
from training.baselines.dec import fit_dec
from training.baselines.gmvae import fit_gmvae
from training.baselines.plain import fit_kmeans, fit_pca_umap_gmm
from training.baselines.vade import fit_vade
from training.baselines.vae import fit_vae_gmm
from training.config import TrainingConfig

__all__ = ["BASELINES", "Baseline", "Clusterer"]


@dataclass(frozen=True)
class Baseline:
    """A method to compare with.

    Attributes
    ----------
    title
        Its name in a table.
    fit
        From raw rows ``(n, *shape)``, uint8 images or float32 features, a configuration and who hears of the
        progress to a fitted `Clusterer`. Pretraining takes ``pretrain_epochs``; what follows takes
        ``epochs``, or 300 if there are none. Raises ``ValueError`` if the rows cannot be clustered, and
        `training.divergence.DivergedError`.
    """

    title: str
    fit: Callable[[np.ndarray, TrainingConfig, Callable[[str], None]], Clusterer]


BASELINES = {
    "kmeans": Baseline("KMeans", fit_kmeans),
    "pca-umap-gmm": Baseline("PCA+UMAP+GMM", fit_pca_umap_gmm),
    "ae-gmm": Baseline("AE+GMM", fit_ae_gmm),
    "vae-gmm": Baseline("VAE+GMM", fit_vae_gmm),
    "dec": Baseline("DEC", fit_dec),
    "vade": Baseline("VaDE", fit_vade),
    "gmvae": Baseline("GMVAE", fit_gmvae),
    "n2d": Baseline("N2D", fit_n2d),
}
