"""The model of several runs side by side: NVISA's own code on stacked layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import TrainingConfig
from training.densities import bernoulli_log_likelihood, bounded_std, gaussian_log_likelihood
from training.model import Baseline, NVISAModel
from training.networks import NEGATIVE_SLOPE
from training.stacked_layers import stack_layers, stacked_parameter, stacked_product


class StackedModel(NVISAModel):
    """S models of the same shape; where `NVISAModel` has an axis B of rows, this has ``(S, B)``.

    Parameters are copies with a leading axis S under their names in `NVISAModel`; buffers are the first
    model's.

    Parameters
    ----------
    models
        At least one; MLPs.
    """

    def __init__(self, config: TrainingConfig, models: Sequence[NVISAModel]) -> None:
        with torch.random.fork_rng(devices=[]):
            super().__init__(config, models[0].spec)
        self.load_state_dict(models[0].state_dict())
        for name, _ in list(self.named_children()):
            setattr(self, name, stack_layers([model.get_submodule(name) for model in models]))
        for name, _ in list(self.named_parameters(recurse=False)):
            setattr(self, name, stacked_parameter([model.get_parameter(name) for model in models]))
        self.to(models[0].shift.device)

    def q_z(self, hidden: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of q(z|y,x): ``hidden (S, B, H)``, ``y (..., S, B)`` -> two of ``(..., S, B, L)``."""
        features = self.z_from_x(hidden)
        if self.z_from_y is None:
            features = features.expand(*y.shape, -1)
        else:
            chosen = F.one_hot(y, self.n_clusters).to(features.dtype)
            features = features + stacked_product(chosen, self.z_from_y)
        features = F.leaky_relu(features, NEGATIVE_SLOPE)
        return self.z_mean(features), bounded_std(self.z_raw_std(features), self.epsilon_z)

    def p_z(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of each run's p(z|y): ``y (..., S, B)`` -> two of ``(..., S, B, L)``."""
        first = self.n_clusters * torch.arange(len(self.prior_mean), device=y.device).unsqueeze(-1)
        mean, raw = (F.embedding(y + first, t.flatten(0, 1)) for t in (self.prior_mean, self.prior_raw_std))
        return mean, bounded_std(raw, 1.0)

    def _log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): ``x (S, B, D)``, ``z (M, S, B, L)`` -> ``(M, S, B)`` in nats."""
        hidden = self.decoder(z)
        mean = self.x_mean(hidden)
        if self.x_raw_std is None:
            return bernoulli_log_likelihood(x, mean)
        raw = self.x_raw_std(hidden)
        if x.device.type != "cpu":
            return gaussian_log_likelihood(x, mean, raw, self.epsilon_x)
        # On a CPU the density works in blocks of one run's (M, B, D) that stay in cache.
        parts = zip(x, mean.unbind(1), raw.unbind(1), strict=True)
        return torch.stack([gaussian_log_likelihood(*part, self.epsilon_x) for part in parts], 1)


class StackedBaseline(nn.Module):
    """NVIL's baselines of S runs, as `training.model.Baseline`."""

    def __init__(self, baselines: Sequence[Baseline]) -> None:
        super().__init__()
        self.net = stack_layers([baseline.net for baseline in baselines])
        self.constant = stacked_parameter([baseline.constant for baseline in baselines])

    def forward(self, x: Tensor) -> Tensor:
        """``(S, B, D) -> (S, B)``."""
        out: Tensor = self.net(x).squeeze(-1) + self.constant.unsqueeze(-1)
        return out
