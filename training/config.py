"""The hyper-parameters of a fit, with the paper's values as defaults, and the named presets."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.annealing import epochs_to_floor
from training.precision import Precision
from training.rows import Memory

# What changes how a run is executed, not what it computes: free to differ between a fit and its resume.
EXECUTION = {"epochs", "device", "memory", "cuda_graph", "checkpoint_seconds", "restart_mode"}

EmbeddingMetric = Literal["euclidean", "cosine"]


class TrainingConfig(BaseModel):
    """Hyper-parameters of one fit. Defaults are the paper's (§III-A) where it names one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_clusters: int = Field(10, ge=1, description="number of clusters K")
    objective: Literal["vimco", "elbo", "nvil", "gumbel"] = Field(
        "vimco",
        description="vimco, elbo (y enumerated, z reparameterised), nvil, or gumbel (y relaxed, z "
        "reparameterised)",
    )
    temperature: float = Field(
        0.5, gt=0, description="of the relaxed y: the lower, the closer to one-hot (gumbel)"
    )
    likelihood: Literal["gaussian", "bernoulli"] = Field("gaussian", description="p(x|z)")
    mean_field: bool = Field(False, description="q(z|x) in place of q(z|y,x)")
    network: Literal["auto", "mlp", "conv"] = Field(
        "mlp",
        description="the encoder's hidden layers: mlp, or conv, residual convolutions under the last of "
        "hidden_sizes (images only); auto: conv for images of at least 16 pixels a side",
    )
    decoder: Literal["mlp", "conv"] = Field(
        "mlp",
        description="the decoder's hidden layers: mlp, or conv, residual upsampling (images only; slow)",
    )
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (500, 500), min_length=1, description="widths of the hidden layers of encoder and decoder"
    )
    latent_dim: int = Field(10, ge=1, description="dimension L of z")
    n_importance_samples: int | None = Field(
        None,
        ge=1,
        description="samples M a row, default 15; for elbo, draws of z for each y, and for gumbel, default 1",
    )
    pathwise_z: bool = Field(
        False,
        description="vimco: reparameterise z and leave the score function to y alone; at small ε much less "
        "variance than the paper's estimator",
    )
    batch_size: int = Field(
        128,
        ge=1,
        description="rows a step, fewer where an epoch had under ten steps; a short last batch is dropped",
    )
    epochs: int | None = Field(
        None, ge=0, description="epochs; default: until ε has been at its floor for one stage"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step size")
    learning_rate_factor: float = Field(0.5, gt=0, le=1, description="decay of the learning rate a stage")
    learning_rate_every: int = Field(300, ge=1, description="length of a learning-rate stage in epochs")
    weight_decay: float = Field(1e-4, ge=0, description="L2 on weight matrices, coupled to the gradient")
    epsilon_x: float | Literal["auto"] = Field(
        1.0,
        description="first lower bound of the std of p(x|z); auto: the paper's 1 carried over from MNIST's "
        "scale to this data's, by the square root of the leading variance",
    )
    epsilon_z: float = Field(1.0, gt=0, description="first lower bound of the std of q(z|y,x)")
    epsilon_factor: float = Field(0.5, gt=0, le=1, description="factor of both bounds a stage")
    epsilon_every: int = Field(
        100, ge=1, description="length of an annealing stage in epochs; the longest, with stage_tolerance"
    )
    stage_tolerance: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a stage ends before epsilon_every when the bound's latest gain is below this share of "
        "its gain in the stage; epochs is then the most there are; 0: all stages are of one length",
    )
    epsilon_floor: float = Field(1e-4, gt=0, description="least ε, as a share of the first")
    initialisation: Literal["umap", "gmm", "random"] = Field(
        "random",
        description="umap: Gaussian mixture on a UMAP embedding of the principal components; gmm: on the "
        "latent space of an autoencoder of the same networks",
    )
    n_neighbors: int = Field(20, ge=2, description="neighbours of a row in UMAP's graph (umap)")
    embedding_metric: EmbeddingMetric = Field(
        "euclidean",
        description="by which rows are alike: euclidean, or cosine, by their direction from the mean alone, "
        "as is usual for features of a network (umap)",
    )
    contrastive_steps: int = Field(
        0,
        ge=0,
        description="steps, of 512 images each, of contrastive learning of the encoder, whose features are "
        "then embedded beside the images' values (umap; images of at least 16 pixels a side only)",
    )
    embed_pixels: bool = Field(
        True,
        description="embed the images' values beside what contrastive_steps found, or that alone (umap)",
    )
    embeddings: int = Field(
        1,
        ge=1,
        description="UMAP embeddings; the one whose clusters agree best with the others' is kept; of 20,000 "
        "rows or more they are made in as many processes as torch has threads (umap)",
    )
    pretrain_epochs: int = Field(
        50, ge=1, description="epochs of the autoencoder (gmm), or with the start's clusters given (umap)"
    )
    gmm_starts: int = Field(
        10, ge=1, description="starts of the Gaussian mixture, one is kept: see gmm_choice (umap, gmm)"
    )
    gmm_choice: Literal["likelihood", "even"] = Field(
        "likelihood",
        description="which start is kept: likelihood, the likeliest; even, by the log-likelihood a dimension "
        "less how far the clusters' sizes are from p(y), which has all alike (umap)",
    )
    anchor: float = Field(
        0.0,
        ge=0,
        description="nats a row for q(y|x) to keep the clusters it gave at the start of an annealing stage",
    )
    augment: Literal["auto"] | bool = Field(
        False,
        description="anchor q(y|x) on slightly shifted, turned and scaled images too (images only); auto: "
        "for images of at least 16 pixels a side",
    )
    balance: float = Field(
        0.0,
        ge=0,
        description="nats for the entropy of a batch's mean q(y|x): a guard against empty clusters",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
    restarts: int = Field(1, ge=1, description="independent runs; one is chosen without labels")
    restart_mode: Literal["auto", "stacked", "sequential"] = Field(
        "auto",
        description="stacked: restarts train at once, in batched matrix products (network and decoder mlp "
        "only); sequential: one after the other; auto: stacked for mlp on a GPU",
    )
    max_rollbacks: int = Field(
        5, ge=0, description="how often a run in trouble goes back an epoch and halves its learning rate"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    memory: Memory = Field(
        "auto",
        description="resident: all rows on the device; mapped: on disk or in RAM, read batch by batch; auto: "
        "mapped if they take more than half of what is free",
    )
    precision: Precision = Field(
        "auto", description="matrix products: float32, low (bfloat16), or low where it is faster"
    )
    cuda_graph: bool = Field(True, description="on a GPU, run each step as the replay of one CUDA graph")
    checkpoint_seconds: float = Field(30.0, ge=0, description="least time between two checkpoints")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.objective == "vimco" and self.n_samples < 2:
            raise ValueError("objective vimco needs n_importance_samples >= 2")
        if self.objective == "nvil" and self.pathwise_z:
            raise ValueError("objective nvil has no pathwise_z")
        if self.objective == "gumbel" and self.restart_mode == "stacked":
            raise ValueError("objective gumbel has no stacked restarts: use restart_mode sequential or auto")
        if self.restart_mode == "stacked" and "conv" in (self.network, self.decoder):
            raise ValueError("restart_mode stacked needs network mlp and decoder mlp: use sequential or auto")
        if self.restart_mode == "stacked" and self.stage_tolerance > 0:
            raise ValueError(
                "restart_mode stacked needs stages of one length, and with stage_tolerance each restart ends "
                "its own: use sequential or auto, or stage_tolerance 0"
            )
        if isinstance(self.epsilon_x, float) and self.epsilon_x <= 0:
            raise ValueError("epsilon_x must be positive or 'auto'")
        if self.epochs is None and self.epsilon_factor == 1:
            raise ValueError("without annealing (epsilon_factor 1) give epochs")
        return self

    @property
    def n_samples(self) -> int:
        """Samples M in force."""
        return self.n_importance_samples or (1 if self.objective in ("elbo", "gumbel") else 15)

    @property
    def total_epochs(self) -> int:
        """Epochs to run: ``epochs``, or until ε has spent one stage at its floor.

        With ``stage_tolerance`` the most there can be: see `training.annealing.epochs_left`.
        """
        return self.scheduled_epochs if self.epochs is None else self.epochs

    @property
    def scheduled_epochs(self) -> int:
        """Epochs until ε has spent one stage at its floor, all stages being as long as they may.

        Raises
        ------
        ValueError
            If ε never gets there (``epsilon_factor`` 1).
        """
        to_floor = epochs_to_floor(1.0, self.epsilon_factor, self.epsilon_every, self.epsilon_floor)
        return to_floor + self.epsilon_every

    def digest(self) -> str:
        """Hash of what decides the result; `EXECUTION` fields, seed and restarts are left out."""
        text = self.model_dump_json(exclude=EXECUTION | {"seed", "restarts"})
        return hashlib.sha256(text.encode()).hexdigest()


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("training") / "presets"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_preset(name: str) -> dict[str, Any]:
    """Hyper-parameters of preset ``name``.

    Raises
    ------
    ValueError
        If there is no such preset; the message lists those there are.
    """
    if name not in preset_names():
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(preset_names())}")
    loaded: dict[str, Any] = yaml.safe_load(
        (resources.files("training") / "presets" / f"{name}.yaml").read_text()
    )
    return loaded


def explain(error: ValidationError) -> str:
    """One line a user can act on for each thing pydantic found wrong."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        shown = f" (got {item['input']!r})" if item["type"] not in {"value_error", "missing"} else ""
        lines.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(lines)
