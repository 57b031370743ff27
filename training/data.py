"""Training data: rows as they came, in memory or on disk, their description, and labels for scoring alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.bundle import sha256
from serving.manifest import InputSpec, listed
from serving.readers import DataError, Source, Split, open_source, read_all
from serving.readers.arrays import ArraySource
from serving.readers.source import input_spec
from training.memory import free_ram
from training.origin import Origin, read_beside
from training.rows import SHARE, Memory, n_bytes, part_rows
from training.spill import mapped

# Far enough below float32's largest number, 3.4e38, that differences of such values are finite.
MAX_FEATURE = 1e37


@dataclass(frozen=True)
class Data:
    """Rows to fit or score.

    Attributes
    ----------
    x
        ``(n, *shape)``, uint8 (images) or float32 (features). Memory-mapped, if it was not to be read whole,
        and then features may be of any real type.
    spec
        dtype, shape and meaning of one row.
    labels
        int64 ``(n,)`` or ``None``. For scoring only: nothing that fits, selects or stops is handed them.
    name, fingerprint
        Where the rows came from, and a SHA-256 that changes when they do.
    origin
        Which backbone made the features, if a file beside them says so.
    """

    x: np.ndarray
    spec: InputSpec
    labels: np.ndarray | None
    name: str
    fingerprint: str
    origin: Origin | None = None


def open_data(
    source: str,
    *,
    split: Split = "train",
    label_column: str | None = None,
    id_columns: Sequence[str] = (),
    feature_columns: Sequence[str] = (),
    labels: bool = False,
    expected: InputSpec | None = None,
    resize: bool = False,
) -> Source:
    """Open a data set, to be read in chunks.

    Parameters
    ----------
    source
        A path, or ``digits`` for the 1,797 8x8 images that come with scikit-learn.
    split
        ``train`` or ``test`` where the source has both (IDX folders); `digits` and single files have none.
    label_column
        Column of labels in a Parquet or CSV file, which is therefore no feature.
    id_columns
        Columns that are no features.
    feature_columns
        Those that are, in this order; by default see `serving.readers.open_source`.
    labels
        Read the labels, to score with. A fit leaves them unread.
    expected, resize
        What rows are to be, and whether images are brought to that, see `serving.readers.open_source`.

    Raises
    ------
    DataError
        If the source is missing, damaged or empty, has no encoded images to ``resize``, or no columns and
        some are named.
    """
    if source == "digits":
        if resize:
            raise DataError("digits are no encoded images, so there is nothing to resize")
        if named := [*filter(None, [label_column]), *id_columns, *feature_columns]:
            raise DataError(f"digits have no columns, but {named} were named")
        return _digits(labels)
    return open_source(
        Path(source),
        split=split,
        label_column=label_column,
        id_columns=tuple(id_columns),
        feature_columns=tuple(feature_columns),
        read_labels=labels,
        expected=expected,
        resize=resize,
    )


def load(
    source: str,
    *,
    split: Split = "train",
    label_column: str | None = None,
    id_columns: Sequence[str] = (),
    feature_columns: Sequence[str] = (),
    labels: bool = False,
    memory: Memory = "resident",
    scratch: Path | None = None,
    expected: InputSpec | None = None,
    resize: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Data:
    """Load a data set whole, or have it on disk in a form that is read in any order.

    Parameters
    ----------
    source, split, label_column, id_columns, feature_columns, labels, expected, resize
        See `open_data`.
    memory
        ``resident`` loads it. ``mapped`` maps NPY and plain IDX files into memory, and has the rows of other
        formats written to a temporary file once. ``auto`` loads what takes up to half of the free RAM.
    scratch
        Folder for the temporary file, which has no name there and is gone with the process; by default the
        system's.
    say
        Hears which columns are the row, and of what takes long.

    Raises
    ------
    DataError
        If the source is missing, damaged, empty, or has a row that cannot be used; the message names it. Of
        NPY and IDX files that are mapped, `check_fit` looks at the rows. Or if ``scratch`` has no room.
    """
    reader = open_data(
        source,
        split=split,
        label_column=label_column,
        id_columns=id_columns,
        feature_columns=feature_columns,
        labels=labels,
        expected=expected,
        resize=resize,
    )
    if reader.features:
        left_out = f"; left out: {listed(reader.left_out)}" if reader.left_out else ""
        say(f"{source}: a row is {listed(reader.features)}{left_out}")
    size = n_bytes(reader.n_rows, reader.input)
    if memory == "resident" or (memory == "auto" and size <= SHARE * free_ram()):
        x, found = read_all(reader)
    else:
        x, found = mapped(reader, scratch, say)
    return Data(
        x=x,
        spec=reader.input,
        labels=found,
        name=source,
        fingerprint=reader.fingerprint,
        origin=read_beside(reader.files),
    )


def describe(x: np.ndarray, columns: Sequence[str] = ()) -> InputSpec:
    """Input specification of an array ``(n, ...)``: uint8 means images, anything else features."""
    return input_spec("uint8" if x.dtype == np.uint8 else "float32", x.shape[1:], columns)


def check_fit(x: np.ndarray, n_clusters: int, *, unit: bool = False) -> None:
    """Refuse what cannot be clustered.

    Parameters
    ----------
    x
        ``(n, *shape)``, any real type; may be memory-mapped, and is gone through in parts.
    unit
        Whether features must be in [0, 1], for a Bernoulli p(x|z).

    Raises
    ------
    ValueError
        If there are fewer rows than clusters, fewer than two rows, values that are not finite, close to
        float32's end or not in ``[0, 1]``, or all rows are equal.
    """
    if len(x) < max(2, n_clusters):
        raise ValueError(
            f"n_samples={len(x)} should be >= n_clusters={n_clusters} (and at least 2): "
            "give more rows or ask for fewer clusters"
        )
    images = x.dtype == np.uint8
    equal, least, most = True, math.inf, -math.inf
    size = part_rows(x.shape)
    for start in range(0, len(x), size):
        part = np.asarray(x[start : start + size])
        equal = equal and bool((part == x[:1]).all())
        if images:
            if not equal:
                return
            continue
        finite = np.isfinite(part).reshape(len(part), -1).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(f"row {row} contains NaN or infinity: mend or remove it")
        least, most = min(least, float(part.min())), max(most, float(part.max()))
    if max(-least, most) > MAX_FEATURE:
        raise ValueError(f"values beyond ±{MAX_FEATURE:g} overflow when they are standardised: rescale them")
    if equal:
        raise ValueError("all rows are equal: there is nothing to cluster")
    if unit and not 0 <= least <= most <= 1:
        raise ValueError("a Bernoulli p(x|z) needs values in [0, 1]; use likelihood=gaussian")


def _digits(labels: bool) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Sixteen grey levels, spread over a byte like any other image.
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)
    source = ArraySource(Path("digits"), (), x, digits.target if labels else None)
    source.fingerprint = sha256(x.tobytes())
    return source
