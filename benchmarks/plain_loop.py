"""NVISA as one would write it first in PyTorch: the peer of `benchmarks/training_speed.py`.

The same network and objective as `training` (`PlainNVISA.copy_from` takes its weights), with nothing done for
speed: a DataLoader over rows, `torch.distributions`, y joined to the hidden features as a one-hot vector, the
leave-one-out terms of VIMCO as an M x M table, autograd through all of it, Adam as it comes, ``loss.item()``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch import distributions as D
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from training.model import NVISAModel


class PlainNVISA(nn.Module):
    """Gaussian p(x|z) and q(z|y,x) q(y|x) on fully connected nets of two hidden layers."""

    def __init__(self, width: int, n_clusters: int = 10, latent: int = 10, hidden: int = 500) -> None:
        super().__init__()
        self.n_clusters = n_clusters
        self.encoder = nn.Sequential(
            nn.Linear(width, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)
        )
        self.y_logits = nn.Linear(hidden, n_clusters)
        self.z_hidden = nn.Linear(hidden + n_clusters, hidden)
        self.z_mean, self.z_raw_std = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.prior_mean = nn.Parameter(torch.randn(n_clusters, latent))
        self.prior_raw_std = nn.Parameter(torch.zeros(n_clusters, latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)
        )
        self.x_mean, self.x_raw_std = nn.Linear(hidden, width), nn.Linear(hidden, width)

    def copy_from(self, model: NVISAModel) -> None:
        """Take the weights of `training`'s model of the same sizes."""
        state = dict(model.state_dict())
        joined = torch.cat([state["z_from_x.weight"], state["z_from_y"].T], 1)
        state |= {"z_hidden.weight": joined, "z_hidden.bias": state["z_from_x.bias"]}
        state |= {f"y_logits.{part}": state[f"y_head.{part}"] for part in ("weight", "bias")}
        self.load_state_dict({name: state[name] for name in self.state_dict()})

    def log_weights(
        self, x: Tensor, n_samples: int, epsilon: float, pathwise: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, log q(y|x) and log q(z|y,x) of samples: ``(B, D)`` -> three of ``(M, B)``."""
        hidden = self.encoder(x)
        q_y = D.Categorical(logits=self.y_logits(hidden).float())
        y = q_y.sample((n_samples,))
        joined = torch.cat([hidden.expand(n_samples, -1, -1), F.one_hot(y, self.n_clusters)], -1)
        features = F.leaky_relu(self.z_hidden(joined), 0.2)
        q_z = D.Normal(self.z_mean(features).float(), F.softplus(self.z_raw_std(features).float()) + epsilon)
        z = q_z.rsample() if pathwise else q_z.sample()
        p_z = D.Normal(self.prior_mean[y], F.softplus(self.prior_raw_std[y]) + 1)
        output = self.decoder(z)
        p_x = D.Normal(self.x_mean(output).float(), F.softplus(self.x_raw_std(output).float()) + epsilon)
        log_q_y, log_q_z = q_y.log_prob(y), q_z.log_prob(z).sum(-1)
        log_p = p_x.log_prob(x).sum(-1) + p_z.log_prob(z).sum(-1) - math.log(self.n_clusters)
        return log_p - log_q_y - log_q_z, log_q_y, log_q_z


def vimco_loss(log_weights: Tensor, log_q: Tensor) -> Tensor:
    """Minus VIMCO's surrogate, averaged over the batch."""
    n_samples = len(log_weights)
    bound = torch.logsumexp(log_weights, 0) - math.log(n_samples)
    with torch.no_grad():
        mean_of_others = (log_weights.sum(0) - log_weights) / (n_samples - 1)
        diagonal = torch.eye(n_samples, device=log_weights.device, dtype=torch.bool)[..., None]
        replaced = torch.where(diagonal, mean_of_others, log_weights.unsqueeze(0))
        signal = bound - (torch.logsumexp(replaced, 1) - math.log(n_samples))
    return -(bound + (signal * log_q).sum(0)).mean()


class PlainLoop:
    """A training loop that can be run a few steps at a time.

    Parameters
    ----------
    rows
        uint8 ``(n, D)``, on the CPU: each batch goes to ``device`` when it is its turn.
    bfloat16
        Whether the forward pass runs under ``torch.autocast``.
    """

    def __init__(
        self,
        model: PlainNVISA,
        rows: Tensor,
        *,
        n_samples: int,
        pathwise: bool,
        batch_size: int,
        bfloat16: bool,
        device: torch.device,
    ) -> None:
        self.model, self.device, self.bfloat16 = model.to(device), device, bfloat16
        self.n_samples, self.pathwise = n_samples, pathwise
        self.loader = DataLoader(TensorDataset(rows), batch_size, shuffle=True, drop_last=True)
        self.batches = iter(self.loader)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)

    def steps(self, count: int, epsilon: float) -> float:
        """Take ``count`` steps; the last loss."""
        loss = 0.0
        for _ in range(count):
            try:
                (rows,) = next(self.batches)
            except StopIteration:
                self.batches = iter(self.loader)
                (rows,) = next(self.batches)
            x = rows.to(self.device).float()
            x = (x + torch.rand_like(x)) / 256
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                weights, log_q_y, log_q_z = self.model.log_weights(x, self.n_samples, epsilon, self.pathwise)
                value = vimco_loss(weights, log_q_y if self.pathwise else log_q_y + log_q_z)
            self.optimiser.zero_grad()
            value.backward()
            self.optimiser.step()
            loss = value.item()
        return loss
