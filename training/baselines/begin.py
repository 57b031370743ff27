"""Where every baseline begins, NVISA does too: rows on the device, nets of the seed, preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from training.config import TrainingConfig
from training.data import check_fit, describe
from training.model import NVISAModel
from training.precision import resolve_device
from training.rows import Rows, moments, place

Say = Callable[[str], None]
# Least std of q(z|x): NVISA's last one. The annealing that NVISA starts from 1 is no part of a baseline.
LEAST_STD = 1e-4
DEFAULT_EPOCHS = 300  # of the joint phase, where the configuration names none: VaDE's on MNIST


def begin(x: np.ndarray, config: TrainingConfig, say: Say) -> tuple[NVISAModel, Rows]:
    """Rows on the configured device, and a fresh model with NVISA's networks there.

    Parameters
    ----------
    x
        ``(n, *shape)``, uint8 images or features, raw.
    config
        Hyper-parameters. Of q only q(z|x) is used: it is mean-field, as all the baselines are.

    Raises
    ------
    ValueError
        If the rows cannot be clustered, or the device is not there.
    """
    check_fit(x, config.n_clusters, unit=config.likelihood == "bernoulli")
    spec = describe(x)
    rows = place(x, spec, resolve_device(config.device), config.memory, say)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = NVISAModel(config.model_copy(update={"mean_field": True}), spec)
    if spec.dtype == "float32" and config.likelihood == "gaussian":
        model.standardise_as(*moments(rows))
    model.epsilon_z.fill_(LEAST_STD)
    return model.to(rows.device), rows


def joint_epochs(config: TrainingConfig) -> int:
    """Epochs of what follows pretraining."""
    return DEFAULT_EPOCHS if config.epochs is None else config.epochs


def with_variational_decoder(x: np.ndarray, config: TrainingConfig) -> TrainingConfig:
    """The configuration of a VAE: Bernoulli p(x|z) for images, as in the papers of VaDE and GMVAE.

    Of features p(x|z) is Gaussian with unit variance, see `training.baselines.vae.log_p_x`.
    """
    changes: dict[str, Any] = {"likelihood": "bernoulli"} if x.dtype == np.uint8 else {}
    return config.model_copy(update=changes)
