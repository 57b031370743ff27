"""The training half: NVISA's model, objectives and loop, and the scikit-learn estimator over them."""

from training.estimator import NVISA

__all__ = ["NVISA"]
