"""NVISA as a scikit-learn estimator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from training import inference
from training.config import TrainingConfig, explain
from training.data import describe
from training.fit import Silent, fit
from training.fitted import Fitted
from training.precision import resolve_device
from training.progress import TerminalProgress
from training.rows import is_mapped


class NVISA(ClusterMixin, TransformerMixin, BaseEstimator):
    """Gaussian mixture VAE clustering with VIMCO and std annealing (Li et al., 2020).

    Rows are images if ``X`` is uint8, and features, which are standardised, otherwise. All parameters are
    those of `training.config.TrainingConfig`; the ones below differ or matter most.

    Parameters
    ----------
    n_clusters
        Number of clusters K.
    epochs
        Epochs of joint training, at most with ``stage_tolerance``; ``None`` for the annealing schedule's
        own length.
    initialisation
        ``"umap"``: Gaussian mixture on a UMAP embedding; ``"gmm"``: on an autoencoder's codes; ``"random"``.
    epsilon_x
        First lower bound of the std of p(x|z), in units of the preprocessed data, or ``"auto"``.
    random_state
        Seed, `numpy.random.RandomState` or ``None``.
    verbose
        Show progress on stderr.
    warm_start
        Let a second `fit` begin with the weights of the one before, in place of an initialisation; clusters
        then mostly keep their ids. Features are standardised as they were the first time.

    Attributes
    ----------
    labels_
        int64 ``(n_samples,)``: clusters of the training rows.
    fitted_
        The chosen run, `training.fitted.Fitted`, with histories, scores and provenance.
    lower_bound_
        Mean bound of log p(x) over the last epoch of the chosen run, in nats a row.
    n_iter_
        Epochs run.
    n_features_in_
        Values in one row.
    feature_names_in_
        Names of the columns, if `fit` got a data frame; then `predict` takes no others.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from training import NVISA
    >>> x = load_iris().data
    >>> model = NVISA(n_clusters=3, epochs=5, random_state=0).fit(x)
    >>> model.predict_proba(x).shape
    (150, 3)
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        objective: str = "vimco",
        temperature: float = 0.5,
        likelihood: str = "gaussian",
        mean_field: bool = False,
        network: str = "auto",
        decoder: str = "mlp",
        hidden_sizes: tuple[int, ...] = (500, 500),
        latent_dim: int = 10,
        n_importance_samples: int | None = None,
        pathwise_z: bool = True,
        batch_size: int = 128,
        epochs: int | None = None,
        learning_rate: float = 1e-3,
        learning_rate_factor: float = 0.5,
        learning_rate_every: int = 10,
        weight_decay: float = 1e-4,
        epsilon_x: float | str = "auto",
        epsilon_z: float = 1.0,
        epsilon_factor: float = 0.5,
        epsilon_every: int = 10,
        stage_tolerance: float = 0.0,
        epsilon_floor: float = 0.25,
        initialisation: str = "umap",
        n_neighbors: int = 20,
        embedding_metric: str = "euclidean",
        contrastive_steps: int = 0,
        embed_pixels: bool = True,
        embeddings: int = 5,
        pretrain_epochs: int = 20,
        gmm_starts: int = 10,
        gmm_choice: str = "likelihood",
        anchor: float = 10.0,
        augment: str | bool = "auto",
        balance: float = 0.0,
        restarts: int = 1,
        restart_mode: str = "auto",
        max_rollbacks: int = 5,
        device: str = "auto",
        memory: str = "auto",
        precision: str = "auto",
        cuda_graph: bool = True,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        warm_start: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.objective = objective
        self.temperature = temperature
        self.likelihood = likelihood
        self.mean_field = mean_field
        self.network = network
        self.decoder = decoder
        self.hidden_sizes = hidden_sizes
        self.latent_dim = latent_dim
        self.n_importance_samples = n_importance_samples
        self.pathwise_z = pathwise_z
        self.batch_size = batch_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.learning_rate_factor = learning_rate_factor
        self.learning_rate_every = learning_rate_every
        self.weight_decay = weight_decay
        self.epsilon_x = epsilon_x
        self.epsilon_z = epsilon_z
        self.epsilon_factor = epsilon_factor
        self.epsilon_every = epsilon_every
        self.stage_tolerance = stage_tolerance
        self.epsilon_floor = epsilon_floor
        self.initialisation = initialisation
        self.n_neighbors = n_neighbors
        self.embedding_metric = embedding_metric
        self.contrastive_steps = contrastive_steps
        self.embed_pixels = embed_pixels
        self.embeddings = embeddings
        self.pretrain_epochs = pretrain_epochs
        self.gmm_starts = gmm_starts
        self.gmm_choice = gmm_choice
        self.anchor = anchor
        self.augment = augment
        self.balance = balance
        self.restarts = restarts
        self.restart_mode = restart_mode
        self.max_rollbacks = max_rollbacks
        self.device = device
        self.memory = memory
        self.precision = precision
        self.cuda_graph = cuda_graph
        self.random_state = random_state
        self.verbose = verbose
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit to rows ``X (n_samples, ...)``; ``y`` is ignored.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used.
        DivergedError
            If every restart diverged.
        """
        progress = TerminalProgress() if self.verbose else Silent()
        old = getattr(self, "fitted_", None) if self.warm_start else None
        try:
            x = self._rows(X, reset=True)
            spec = describe(x, tuple(getattr(self, "feature_names_in_", ())))
            self.fitted_ = fit(self._config(), x, spec, warm_start=old, progress=progress)
        except BaseException:
            self._take_columns()
            raise
        finally:
            if isinstance(progress, TerminalProgress):
                progress.close()
        self._remember()
        self.labels_ = inference.assign(self.fitted_.model, x).clusters
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Most probable cluster of each row, int64 ``(n_samples,)``."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """q(y|x), float32 ``(n_samples, n_clusters)``."""
        check_is_fitted(self)
        return inference.probabilities(self.fitted_.model, self._rows(X))

    def transform(self, X: Any) -> np.ndarray:
        """Code of each row, the mean of q(z|y,x) at its cluster, float32 ``(n_samples, latent_dim)``."""
        check_is_fitted(self)
        return inference.codes(self.fitted_.model, self._rows(X))

    def score_samples(self, X: Any, n_samples: int = 10) -> np.ndarray:
        """Lower bound of log p(x) of each row in nats, float32; y summed, z drawn ``n_samples`` times."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        return inference.bounds(self.fitted_.model, self._rows(X), n_samples)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`; ``y`` is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows by ancestral sampling: y uniform, z ~ p(z|y), x the mean of p(x|z).

        Returns
        -------
        X, y
            ``(n_samples, *row_shape)``, uint8 for images, and int64 ``(n_samples,)``.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        random = check_random_state(self.random_state)
        y = random.randint(self.fitted_.config.n_clusters, size=n_samples)
        z = inference.sample_prior(self.fitted_.model, y, int(random.randint(2**31 - 1)))
        return inference.decode(self.fitted_.model, z), y

    def save(self, path: str | Path) -> None:
        """Write the fitted model to directory ``path``, without pickle."""
        check_is_fitted(self)
        self.fitted_.save(Path(path))

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """Read a model from a directory `save` or ``nvisa-train fit`` wrote.

        ``labels_`` is not kept: call `predict` on the rows again.

        Raises
        ------
        CheckpointError
            If the directory holds no model or a damaged one.
        """
        fitted = Fitted.load(Path(path), resolve_device(device))
        values = fitted.config.model_dump(exclude={"seed", "checkpoint_seconds"})
        estimator = cls(**values | {"device": device, "random_state": fitted.config.seed})
        estimator.fitted_ = fitted
        estimator._take_columns()
        estimator._remember()
        return estimator

    def _take_columns(self) -> None:
        """Check rows against the model there is, which after a fit that failed is the one from before."""
        if not hasattr(self, "fitted_"):
            return
        self.n_features_in_ = self.fitted_.spec.row_size
        if self.fitted_.spec.columns:
            self.feature_names_in_ = np.array(self.fitted_.spec.columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _remember(self) -> None:
        history = self.fitted_.histories[self.fitted_.chosen]
        self.n_iter_ = len(history)
        self.lower_bound_ = history[-1]["bound"] if history else -np.inf

    def _config(self) -> TrainingConfig:
        values = self.get_params(deep=False)
        values.pop("verbose")
        values.pop("warm_start")
        state = values.pop("random_state")
        if isinstance(state, int | np.integer):
            seed = int(state)
        else:
            seed = int(check_random_state(state).randint(2**31 - 1))
        try:
            return TrainingConfig(**values, seed=seed)
        except ValidationError as error:
            raise ValueError(explain(error)) from error

    def _rows(self, X: Any, reset: bool = False) -> np.ndarray:
        # A file that is mapped into memory is not read whole to be cast: its rows are, as they are used.
        in_place = isinstance(X, np.ndarray) and is_mapped(X)
        dtype: Any = "numeric" if in_place else np.float32
        order = None if in_place else "C"
        if getattr(X, "dtype", None) == np.uint8 or getattr(X, "ndim", 2) > 2:
            # Images and other rows with a shape: scikit-learn would count only their second axis.
            dtype = np.uint8 if X.dtype == np.uint8 else dtype
            x = check_array(X, dtype=dtype, order=order, allow_nd=True)
            if reset:
                self.n_features_in_ = int(np.prod(x.shape[1:]))
                if hasattr(self, "feature_names_in_"):
                    del self.feature_names_in_
        else:
            x = validate_data(self, X, reset=reset, dtype=dtype, order=order)
        if not reset and x.shape[1:] != self.fitted_.spec.shape:
            raise ValueError(
                f"rows have shape {x.shape[1:]}, the model was fitted on {self.fitted_.spec.shape}"
            )
        if not reset and describe(x).dtype != self.fitted_.spec.dtype:
            raise ValueError(f"rows are {x.dtype}, the model was fitted on {self.fitted_.spec.dtype}")
        return x
