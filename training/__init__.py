"""The training half: NVISA's model, objectives and loop, and the scikit-learn estimator over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.estimator import NVISA

__all__ = ["NVISA"]


def __getattr__(name: str) -> Any:
    """Import the estimator when it is first asked for: ``nvisa-train --help`` needs no torch."""
    if name == "NVISA":
        from training.estimator import NVISA

        return NVISA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
