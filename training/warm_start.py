"""Going on from an older run: its weights in place of an initialisation, for refits on newer data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.manifest import InputSpec
from training.config import TrainingConfig
from training.fitted import Fitted
from training.model import NVISAModel
from training.networks import network_for
from training.rows import Rows, moments

# What decides the shapes of the weights and what they mean; everything else may differ between two fits.
ARCHITECTURE = ("n_clusters", "network", "decoder", "hidden_sizes", "latent_dim", "likelihood", "mean_field")
# A feature's mean or std that moved by more than this factor of the old std is worth a word.
DRIFT = 3.0


@dataclass(frozen=True)
class WarmStart:
    """Weights to begin with.

    Attributes
    ----------
    weights
        The old model's parameters and buffers, on the CPU. Its standardisation is among them and is kept:
        the nets were fitted under it, and on other units they would be of no use.
    digest
        SHA-256 of names and values, by which a resumed fit knows them again.
    names
        The old run's names of its clusters, which stay the clusters of these weights.
    """

    weights: dict[str, Tensor]
    digest: str
    names: tuple[str, ...]


def warm_start(old: Fitted, config: TrainingConfig, spec: InputSpec) -> WarmStart:
    """Take a fitted model's weights for a fit of ``config`` to rows of ``spec``.

    Raises
    ------
    ValueError
        If the two models or their rows differ; the message names all that does.
    """
    ours, theirs = _architecture(config, spec), _architecture(old.config, old.spec)
    differ = [
        f"{name} is {theirs[name]} there and {ours[name]} here"
        for name in ARCHITECTURE
        if theirs[name] != ours[name]
    ]
    if difference := old.spec.difference(spec):
        differ.append(f"the rows differ, here {difference}")
    if differ:
        raise ValueError(
            f"the weights of the old run do not fit: {'; '.join(differ)}; "
            "ask for what the old run has, or fit without a warm start"
        )
    weights = {name: value.detach().cpu().clone() for name, value in old.model.state_dict().items()}
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return WarmStart(weights, digest.hexdigest(), old.cluster_names)


def _architecture(config: TrainingConfig, spec: InputSpec) -> dict[str, object]:
    """What `ARCHITECTURE` names, with the network that ``auto`` stands for."""
    return {name: getattr(config, name) for name in ARCHITECTURE} | {
        "network": network_for(config.network, spec)
    }


@torch.no_grad()
def drifted_features(model: NVISAModel, rows: Rows) -> list[int]:
    """Features of raw ``rows (n, *shape)`` that lie far from where the model's standardisation puts them.

    Those whose mean is more than 3 old stds from the old mean, or whose std is more than 3 times the old one.
    """
    if model.spec.dtype != "float32" or model.likelihood != "gaussian":
        return []
    mean, std = (values.to(model.shift.device) for values in moments(rows))
    far = ((mean - model.shift) / model.scale).abs() > DRIFT
    return torch.nonzero(far | (std / model.scale > DRIFT)).flatten().tolist()
