"""Where a run starts: from a UMAP embedding, or an autoencoder (paper §III-B), and a Gaussian mixture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from training.agreement import agree
from training.augment import large_images
from training.config import TrainingConfig
from training.contrastive import contrast, contrastive_features
from training.divergence import DivergedError
from training.embedding import EMBEDDED_ROWS, responsibilities
from training.mixture import fit_mixture
from training.model import NVISAModel
from training.networks import NEGATIVE_SLOPE
from training.precision import matrix_products
from training.rows import MappedRows, Rows, fetch, part_rows
from training.schedule import batches, epoch_generator

CODED_ROWS = 1_000_000
DISTILL_ROWS = 50_000
DISTILL_STEPS = 200
DISTILL_PENALTY = 1e-4
# Std of p(z|y) at its initial parameters, SoftPlus(0) + 1: the autoencoder's latent space is scaled so
# that the mixture's components are as wide as the prior's.
PRIOR_STD = 1.0 + float(np.log(2.0))
_ENCODER = ("encoder.", "z_from_x.", "z_mean.")
_ASSIGNER = ("encoder.", "y_head.")


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture's parameters, as scikit-learn holds them."""

    weights: np.ndarray
    means: np.ndarray
    precisions_cholesky: np.ndarray

    def fitted(self) -> GaussianMixture:
        """The mixture as a scikit-learn object."""
        mixture = GaussianMixture(len(self.weights))
        mixture.weights_, mixture.means_ = self.weights, self.means
        mixture.precisions_cholesky_ = self.precisions_cholesky
        return mixture


@dataclass(frozen=True)
class Start:
    """What a run started from, able to assign rows by itself: the baseline of joint training.

    Attributes
    ----------
    encoder
        Parameters of the pretrained encoder, by their names in the model.
    mixture
        AE+GMM (Table I): the mixture of K full-covariance components on its codes. ``None`` for umap,
        where the pretrained q(y|x) itself assigns, and for a warm start, where the old model's does.
    """

    encoder: dict[str, Tensor]
    mixture: Mixture | None = None

    def predict(self, model: NVISAModel, x: np.ndarray) -> np.ndarray:
        """Component of each raw row, ``(n, *shape) -> (n,)``; ``model`` lends its architecture only."""
        pretrained = copy.deepcopy(model)
        pretrained.load_state_dict(self.encoder, strict=False)
        rows = MappedRows(x, model.spec.dtype, pretrained.shift.device)
        if self.mixture is None:
            return assign_rows(pretrained, rows).cpu().numpy()
        return np.asarray(self.mixture.fitted().predict(encode_rows(pretrained, rows)))

    def tensors(self) -> dict[str, Tensor]:
        """As tensors, for a checkpoint."""
        parts = {} if self.mixture is None else vars(self.mixture)
        mixture = {name: torch.as_tensor(value) for name, value in parts.items()}
        return mixture | {f"encoder.{name}": value for name, value in self.encoder.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """Back from `tensors`."""
        encoder = {n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")}
        mixture = {n: t.numpy() for n, t in tensors.items() if not n.startswith("encoder.")}
        return cls(encoder, Mixture(**mixture) if mixture else None)


def latent_code(model: NVISAModel, x: Tensor) -> Tensor:
    """The autoencoder's code of preprocessed rows: ``(B, D) -> (B, L)``, q(z|y,x)'s mean without y."""
    hidden = F.leaky_relu(model.z_from_x(model.encoder(x)), NEGATIVE_SLOPE)
    code: Tensor = model.z_mean(hidden)
    return code


def initialise_gmm(
    model: NVISAModel, rows: Rows, config: TrainingConfig, say: Callable[[str], None]
) -> Start:
    """Pretrain an autoencoder of the same networks, fit a mixture on its codes, start the model there.

    The networks keep the autoencoder's weights, the prior's means become the mixture's, and q(y|x)'s head
    learns the mixture's responsibilities on the frozen encoder, so that the three agree before the first
    joint step. q(z|y,x) starts independent of y.

    Parameters
    ----------
    model
        A freshly built model on its device; changed in place.
    rows
        ``(n, *shape)`` as they came, given on the same device.

    Raises
    ------
    DivergedError
        If the autoencoder's codes are not finite.
    """
    pretrain(model, rows, config, say)
    mixture = fit_mixture(finite_codes(model, rows), config.n_clusters, config.gmm_starts, config.seed)
    variances = np.diagonal(mixture.covariances_, axis1=1, axis2=2)
    factor = scale_codes(model, np.average(variances, axis=0, weights=mixture.weights_))
    with torch.no_grad():
        model.prior_mean.copy_(torch.as_tensor(mixture.means_ * factor))
        if model.z_from_y is not None:
            model.z_from_y.zero_()
    scaled = Mixture(mixture.weights_, mixture.means_ * factor, mixture.precisions_cholesky_ / factor)
    _distill(model, rows, scaled)
    return Start(_parameters(model, _ENCODER), scaled)


def initialise_umap(
    model: NVISAModel, rows: Rows, config: TrainingConfig, say: Callable[[str], None]
) -> Start:
    """Cluster a UMAP embedding of the rows, and train the model with those clusters given.

    At most 70,000 evenly spread rows are embedded, by their values and, of images, with
    ``contrastive_steps``, by what the encoder has first learned of them; without ``embed_pixels`` by that
    alone. See `training.embedding`, `training.contrastive` and `training.agreement`. Parameters and errors
    as for `initialise_gmm`.
    """
    chosen = rows[:: -(-len(rows) // EMBEDDED_ROWS)]
    features = None
    if config.contrastive_steps > 0 and large_images(model.spec):
        contrast(model, chosen, config, say)
        features = contrastive_features(model, chosen).numpy()
    if features is not None and not config.embed_pixels:
        found = responsibilities(features, config, say)
    else:
        values = torch.cat([model.preprocess(part).cpu() for part in _parts(chosen)]).numpy()
        found = responsibilities(values, config, say, features)
    clusters = torch.as_tensor(found.argmax(1), device=rows.device)
    agree(model, chosen, clusters, config, say)
    return Start(_parameters(model, _ASSIGNER))


def start_at(model: NVISAModel) -> Start:
    """The start of a run that goes on from ``model`` as it is: q(y|x) itself assigns."""
    return Start(_parameters(model, _ASSIGNER))


@torch.no_grad()
def assign_rows(model: NVISAModel, rows: Rows) -> Tensor:
    """Most probable cluster of raw rows under q(y|x): ``(n, *shape) -> (n,)``, int64."""
    return torch.cat([model(part).argmax(1) for part in _parts(rows)])


def _parameters(model: NVISAModel, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: v.cpu().clone() for name, v in model.state_dict().items() if name.startswith(prefixes)}


def encode_rows(model: NVISAModel, rows: Rows) -> np.ndarray:
    """Codes of all rows, float64 ``(n, L)``."""
    with torch.no_grad():
        parts = [latent_code(model, model.preprocess(part)).cpu() for part in _parts(rows)]
    return torch.cat(parts).double().numpy()


@torch.no_grad()
def scale_codes(model: NVISAModel, variances: np.ndarray) -> float:
    """Scale an autoencoder's codes so that a mixture's components on them become as wide as the prior's.

    A factor on the codes and its inverse on the decoder change nothing but the units of z.

    Parameters
    ----------
    model
        Changed in place.
    variances
        Mean variances of the components ``(L,)``, in the codes' present units.

    Returns
    -------
    float
        The factor.
    """
    factor = PRIOR_STD / float(np.sqrt(variances.mean()))
    for parameter in model.z_mean.parameters():
        parameter.mul_(factor)
    next(model.decoder.parameters()).div_(factor)  # the weight that meets z
    return factor


def finite_codes(model: NVISAModel, rows: Rows) -> np.ndarray:
    """Codes of rows, of evenly spread ones where they are more than a million: float64 ``(n, L)``.

    Raises
    ------
    DivergedError
        If they are not finite.
    """
    codes = encode_rows(model, rows[:: -(-len(rows) // CODED_ROWS)])
    if not np.isfinite(codes).all():
        raise DivergedError("the autoencoder's codes are not finite: lower learning_rate")
    return codes


def _parts(rows: Rows) -> Iterable[Tensor]:
    return rows.split(part_rows(rows.shape))


def pretrain(
    model: NVISAModel,
    rows: Rows,
    config: TrainingConfig,
    say: Callable[[str], None],
    *,
    redraw: bool = True,
) -> None:
    """Train encoder and decoder as an autoencoder, `latent_code` its code, for ``config.pretrain_epochs``.

    The loss is the squared error, or for a Bernoulli p(x|z) the cross-entropy. With ``redraw`` images are
    dequantised or binarised anew in each epoch, else they are always the mean of that.
    """
    decoder = [*model.decoder.parameters(), *model.x_mean.parameters()]
    encoder = [*model.encoder.parameters(), *model.z_from_x.parameters(), *model.z_mean.parameters()]
    optimiser = torch.optim.Adam([*encoder, *decoder], lr=config.learning_rate, fused=True)
    for epoch in range(config.pretrain_epochs):
        total, count = torch.zeros((), device=rows.device), 0
        for x in _epoch(model, rows, config, epoch - config.pretrain_epochs, redraw):
            with matrix_products(rows.device, config.precision):
                output = model.x_mean(model.decoder(latent_code(model, x)))
            if config.likelihood == "bernoulli":
                loss = F.binary_cross_entropy_with_logits(output, x, reduction="sum") / len(x)
            else:
                loss = (output - x).square().sum() / len(x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
            count += 1
        if epoch == config.pretrain_epochs - 1 or (epoch + 1) % max(1, config.pretrain_epochs // 5) == 0:
            mean = total.item() / count
            say(f"autoencoder epoch {epoch + 1}/{config.pretrain_epochs}: loss {mean:.3f} a row")
    model.zero_grad(set_to_none=True)


def _distill(model: NVISAModel, rows: Rows, mixture: Mixture) -> None:
    """Fit q(y|x)'s head to the mixture's responsibilities on the frozen encoder."""
    rows = rows[:: -(-len(rows) // DISTILL_ROWS)]
    responsibilities = torch.as_tensor(mixture.fitted().predict_proba(encode_rows(model, rows))).float()
    responsibilities = responsibilities.to(rows.device)
    with torch.no_grad():
        hidden = torch.cat([model.encoder(model.preprocess(part)) for part in _parts(rows)])
    optimiser = torch.optim.LBFGS(
        model.y_head.parameters(), max_iter=DISTILL_STEPS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(model.y_head(hidden), responsibilities)
        # Responsibilities near 0 and 1 have no finite maximum-likelihood weights.
        value = value + DISTILL_PENALTY * model.y_head.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    model.zero_grad(set_to_none=True)


def _epoch(
    model: NVISAModel, rows: Rows, config: TrainingConfig, epoch: int, redraw: bool
) -> Iterator[Tensor]:
    generator = epoch_generator(config.seed, epoch, rows.device)
    for _, raw in fetch(rows, batches(len(rows), config.batch_size, generator)):
        yield model.preprocess(raw, generator if redraw else None)
