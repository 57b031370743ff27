"""Training data in memory: rows as they came, their description, and labels for scoring alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from serving.bundle import InputSpec, sha256
from serving.readers import open_source, read_all
from serving.readers.source import input_spec

Split = Literal["train", "test"]
# Far enough below float32's largest number, 3.4e38, that differences of such values are finite.
MAX_FEATURE = 1e37


@dataclass(frozen=True)
class Data:
    """Rows to fit or score.

    Attributes
    ----------
    x
        ``(n, *shape)``, uint8 (images) or float32 (features).
    spec
        dtype, shape and meaning of one row.
    labels
        int64 ``(n,)`` or ``None``. For scoring only: nothing that fits, selects or stops is handed them.
    name, fingerprint
        Where the rows came from, and a SHA-256 that changes when they do.
    """

    x: np.ndarray
    spec: InputSpec
    labels: np.ndarray | None
    name: str
    fingerprint: str


def load(
    source: str, *, split: Split = "train", label_column: str | None = None, labels: bool = False
) -> Data:
    """Load a data set whole.

    Parameters
    ----------
    source
        A path, or ``digits`` for the 1,797 8x8 images that come with scikit-learn.
    split
        ``train`` or ``test`` where the source has both (IDX folders); `digits` and single files have none.
    label_column
        Column of labels in a Parquet or CSV file, which is therefore no feature.
    labels
        Read the labels, to score with. A fit leaves them unread.

    Raises
    ------
    DataError
        If the source is missing, damaged, empty, or has a row that cannot be used; the message names it.
    """
    if source == "digits":
        return _digits(labels)
    reader = open_source(Path(source), split=split, label_column=label_column, read_labels=labels)
    x, found = read_all(reader)
    return Data(x=x, spec=reader.input, labels=found, name=source, fingerprint=reader.fingerprint)


def describe(x: np.ndarray) -> InputSpec:
    """Input specification of an array ``(n, ...)``: uint8 means images, anything else features."""
    return input_spec("uint8" if x.dtype == np.uint8 else "float32", x.shape[1:])


def check_fit(x: np.ndarray, n_clusters: int) -> None:
    """Refuse what cannot be clustered.

    Raises
    ------
    ValueError
        If there are fewer rows than clusters, fewer than two rows, values that are not finite or close to
        float32's end, or all rows are equal.
    """
    if len(x) < max(2, n_clusters):
        raise ValueError(
            f"n_samples={len(x)} should be >= n_clusters={n_clusters} (and at least 2): "
            "give more rows or ask for fewer clusters"
        )
    if x.dtype != np.uint8 and not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(axis=1)))
        raise ValueError(f"row {row} contains NaN or infinity: mend or remove it")
    if x.dtype != np.uint8 and np.abs(x).max() > MAX_FEATURE:
        raise ValueError(f"values beyond ±{MAX_FEATURE:g} overflow when they are standardised: rescale them")
    if (x == x[:1]).all():
        raise ValueError("all rows are equal: there is nothing to cluster")


def _digits(labels: bool) -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Sixteen grey levels, spread over a byte like any other image.
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Data(
        x=x,
        spec=describe(x),
        labels=digits.target.astype(np.int64) if labels else None,
        name="digits",
        fingerprint=sha256(x.tobytes()),
    )
