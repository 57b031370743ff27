"""Baselines that cluster the codes of an autoencoder with NVISA's networks: AE+GMM and N2D.

Own code: ClustPy 0.0.3's N2D gives new rows the nearest centre in the codes, leaving the embedding out, and
its networks, loop and loader are not NVISA's.
"""

from __future__ import annotations

import numpy as np

from training.baselines.begin import Say, begin
from training.baselines.clusterer import Clusterer, on_codes
from training.baselines.manifold import fit_umap_mixture
from training.config import TrainingConfig
from training.embedding import EMBEDDED_ROWS
from training.initialise import finite_codes, pretrain
from training.mixture import fit_mixture


def fit_ae_gmm(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """An autoencoder of ``pretrain_epochs``, and the likeliest of ``gmm_starts`` mixtures on its codes.

    NVISA's ``gmm`` start, without what brings NVISA's other parts to agree with it.
    """
    model, rows = begin(x, config, say)
    pretrain(model, rows, config, say)
    codes = finite_codes(model, rows)
    return on_codes(model, fit_mixture(codes, config.n_clusters, config.gmm_starts, config.seed))


def fit_n2d(x: np.ndarray, config: TrainingConfig, say: Say) -> Clusterer:
    """N2D (McConville et al., 2020): an autoencoder, UMAP of its codes, and a mixture on the embedding.

    UMAP's settings are the paper's: 20 neighbours by default, no minimum distance, and as many dimensions
    as the paper's ten classes. At most 70,000 evenly spread rows are embedded.
    """
    model, rows = begin(x, config, say)
    pretrain(model, rows, config, say)
    codes = finite_codes(model, rows[:: -(-len(rows) // EMBEDDED_ROWS)])
    return on_codes(model, fit_umap_mixture(codes, config, say, reduce=True))
