"""From the bytes or numbers of a request to a checked array. Shared by both gRPC services."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from serving.errors import InvalidInput
from serving.manifest import InputSpec, columns_difference


def from_bytes(spec: InputSpec, shape: Sequence[int], data: bytes) -> np.ndarray:
    """View row-major little-endian ``data`` as an array of ``shape``; nothing is copied.

    Parameters
    ----------
    spec
        What the model takes.
    shape
        All axes, the batch first.
    data
        ``prod(shape)`` values of ``spec.dtype``.

    Returns
    -------
    np.ndarray
        Read-only, ``(n_rows, *spec.shape)``.

    Raises
    ------
    InvalidInput
        If shape, byte count or values do not fit; the message names the first bad row.
    """
    shape = check_shape(spec, shape)
    expected = shape[0] * spec.row_bytes
    if len(data) != expected:
        raise InvalidInput(
            f"shape {list(shape)} of {spec.dtype} takes {expected} bytes, got {len(data)}; "
            "send the values row-major and little-endian, without padding"
        )
    x = np.frombuffer(data, spec.numpy_dtype).reshape(shape)
    check_finite(x)
    return x


def from_numbers(spec: InputSpec, shape: Sequence[int], numbers: Sequence[float]) -> np.ndarray:
    """Copy ``numbers`` into an array of ``shape``; otherwise as `from_bytes`.

    Raises
    ------
    InvalidInput
        As `from_bytes`, and if a number is not a whole one from 0 to 255 where the model takes uint8.
    """
    shape = check_shape(spec, shape)
    expected = shape[0] * spec.row_size
    if len(numbers) != expected:
        raise InvalidInput(f"shape {list(shape)} takes {expected} values, got {len(numbers)}")
    values = np.array(numbers, dtype=np.float64).reshape(shape)
    check_finite(values)
    if spec.dtype == "uint8":
        wrong = (values < 0) | (values > 255) | (values != np.floor(values))
        _refuse_first(wrong, "has a value that is not a whole number from 0 to 255")
        return values.astype(np.uint8)
    with np.errstate(over="ignore"):
        x = values.astype(np.float32)
    check_finite(x)
    return x


def check_dtype(spec: InputSpec, dtype: str) -> None:
    """Raise `InvalidInput` unless ``dtype`` is the model's."""
    if dtype != spec.dtype:
        raise InvalidInput(f"the input is {dtype}, the model takes {spec.dtype}")


def check_columns(spec: InputSpec, columns: Sequence[str]) -> None:
    """Raise `InvalidInput` if ``columns`` are named, and the model knows others or another order."""
    if not columns or not spec.columns:
        return
    if len(columns) != len(spec.columns):  # before any of what may be millions is looked at
        raise InvalidInput(f"the input names {len(columns)} columns, the model takes {len(spec.columns)}")
    if difference := columns_difference(spec.columns, columns):
        raise InvalidInput(f"the input has {difference}; send those that the model names, in its order")


def check_shape(spec: InputSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """Return ``shape``; raise `InvalidInput` unless it is at least one row of the model's shape."""
    if len(shape) != 1 + len(spec.shape):
        raise InvalidInput(f"the input has shape {_short(shape)}, the model takes {_wanted(spec)}")
    found = tuple(shape)
    if found[1:] != spec.shape:
        raise InvalidInput(
            f"the input's rows have shape {_short(found[1:])}, the model takes {_wanted(spec)}"
        )
    if found[0] < 1:
        raise InvalidInput(f"the input has {found[0]} rows; send at least one")
    return found


def check_finite(x: np.ndarray) -> None:
    """Raise `InvalidInput` naming the first row of ``x`` with NaN or infinity."""
    if x.dtype.kind != "f":
        return
    # One pass without temporaries; a sum that overflows without cause only costs the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(x.sum()):
            return
    _refuse_first(~np.isfinite(x), "has NaN or infinity")


def _refuse_first(wrong: np.ndarray, what: str) -> None:
    rows = np.atleast_1d(wrong.reshape(len(wrong), -1).any(axis=1))
    if rows.any():
        raise InvalidInput(f"row {int(rows.argmax())} {what} ({int(rows.sum())} such rows of {len(rows)})")


def _wanted(spec: InputSpec) -> str:
    return f"[n_rows, {', '.join(map(str, spec.shape))}]"


def _short(shape: Sequence[int]) -> str:
    axes = [str(axis) for axis in shape[:8]] + (["..."] if len(shape) > 8 else [])
    return f"[{', '.join(axes)}]"
