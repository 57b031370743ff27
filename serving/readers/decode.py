"""Arrow columns to arrays of rows: numbers, nested lists and encoded images."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from serving.manifest import InputSpec
from serving.readers.arrays import finite_float32
from serving.readers.columns import Roles, is_list
from serving.readers.images import decode_image, promised_shape
from serving.readers.source import input_spec

PROBE_ROWS = 64


class RowDecoder(Protocol):
    """Turns the feature columns of a table into rows.

    Attributes
    ----------
    input
        What one row looks like.
    """

    input: InputSpec

    def decode(self, table: pa.Table) -> tuple[np.ndarray, dict[int, str]]:
        """Rows ``(n_rows, *input.shape)``, zeros where unreadable, and by offset what is wrong."""
        ...


class NumericRows:
    """Numeric columns side by side, in float32. Text (from CSV) is parsed here, cell by cell if need be.

    Parameters
    ----------
    roles
        The features, in order, and what they are called.
    """

    def __init__(self, roles: Roles) -> None:
        self._columns = roles.features
        self.input = input_spec("float32", (len(self._columns),), roles.names)

    def decode(self, table: pa.Table) -> tuple[np.ndarray, dict[int, str]]:
        """See `RowDecoder.decode`; a missing value, NaN, infinity or text that is no number is an error."""
        x = np.empty((table.num_rows, len(self._columns)), np.float32)
        not_numbers: dict[int, str] = {}
        with np.errstate(over="ignore"):
            for j, name in enumerate(self._columns):
                column = table.column(name).combine_chunks()
                if types.is_string(column.type):
                    column = _parsed(name, column, not_numbers)
                x[:, j] = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        x, errors = finite_float32(x, self._columns)
        return x, {row: not_numbers.get(row, message) for row, message in errors.items()}


class ListRows:
    """One column of (nested) lists: uint8 stays uint8, other numbers become float32.

    Parameters
    ----------
    column
        Name of the column.
    sample
        Its first rows, which settle the shape; see `expected` of `serving.readers.open_source`.
    expected
        What a model takes, if that is known.
    """

    def __init__(self, column: str, sample: pa.Array, expected: InputSpec | None) -> None:
        self._column = column
        self._tensor_shape = _tensor_shape(sample.type)
        leaf = _storage(sample).type
        while is_list(leaf):
            leaf = leaf.value_type
        dtype = "uint8" if types.is_uint8(leaf) else "float32"
        shapes = self._shapes(sample)
        fits = expected is not None and expected.dtype == dtype and expected.shape in shapes
        shape = expected.shape if fits and expected is not None else (shapes[0] if shapes else (1,))
        self.input = input_spec(dtype, shape)

    def decode(self, table: pa.Table) -> tuple[np.ndarray, dict[int, str]]:
        """See `RowDecoder.decode`; a list that is null or of another shape is an error."""
        array = _storage(table.column(self._column).combine_chunks())
        shape = self.input.shape if self._tensor_shape is None else (int(np.prod(self._tensor_shape)),)
        values, ok = _unnested(array, shape)
        errors = {
            int(row): f"a list that is null, holds nulls, or is not of shape {self.input.shape}"
            for row in np.flatnonzero(~ok)
        }
        values = values.reshape(len(values), *self.input.shape)
        if self.input.dtype == "uint8":
            return values.astype(np.uint8, copy=False), errors
        x, non_finite = finite_float32(values)
        return x, {**non_finite, **errors}

    def _shapes(self, sample: pa.Array) -> list[tuple[int, ...]]:
        if self._tensor_shape is not None:
            return [self._tensor_shape]
        shapes = []
        for value in _storage(sample).drop_null().slice(0, PROBE_ROWS).to_pylist():
            shape: list[int] = []
            while isinstance(value, list) and value:
                shape.append(len(value))
                value = value[0]
            if shape:
                shapes.append(tuple(shape))
        return shapes


class ImageRows:
    """One column of encoded images, alone or in a struct with a field ``bytes``; decoded to uint8.

    Parameters
    ----------
    column, sample, expected
        See `ListRows`.
    resize
        See `serving.readers.open_source`.
    """

    def __init__(
        self, column: str, sample: pa.Array, expected: InputSpec | None, resize: bool = False
    ) -> None:
        self._column = column
        self._resize = resize
        data = (value.as_py() for value in _image_bytes(sample.slice(0, PROBE_ROWS)))
        self.input = input_spec("uint8", promised_shape(data, expected, resize))

    def decode(self, table: pa.Table) -> tuple[np.ndarray, dict[int, str]]:
        """See `RowDecoder.decode`; an image that is null, corrupt or of another size is an error."""
        x = np.zeros((table.num_rows, *self.input.shape), np.uint8)
        errors: dict[int, str] = {}
        for row, value in enumerate(_image_bytes(table.column(self._column).combine_chunks())):
            try:
                x[row] = decode_image(value.as_py(), self.input.shape, resize=self._resize)
            except ValueError as error:
                errors[row] = str(error)
        return x, errors


def _image_bytes(column: pa.Array) -> pa.Array:
    # struct_field, unlike StructArray.field, makes the bytes null where the struct is.
    return pc.struct_field(column, "bytes") if types.is_struct(column.type) else column


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _tensor_shape(kind: pa.DataType) -> tuple[int, ...] | None:
    return tuple(kind.shape) if isinstance(kind, pa.FixedShapeTensorType) else None


def _unnested(array: pa.Array, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Values ``(n_rows, *shape)`` of nested lists, zeros where a row is not of this shape, and which are."""
    if not shape and not is_list(array.type):
        values = array if types.is_uint8(array.type) else pc.cast(array, pa.float32(), safe=False)
        filled = pc.fill_null(values, pa.scalar(0, values.type)).to_numpy(zero_copy_only=False)
        return filled, array.is_valid().to_numpy(zero_copy_only=False)
    if not shape or not is_list(array.type):
        return np.zeros((len(array), *shape), np.float32), np.zeros(len(array), bool)
    fits_here = pc.fill_null(pc.equal(pc.list_value_length(array), shape[0]), False)
    ok = fits_here.to_numpy(zero_copy_only=False).astype(bool)
    inner, inner_ok = _unnested(array.filter(fits_here).flatten(), shape[1:])
    whole = inner_ok.reshape(-1, shape[0]).all(axis=1)
    if ok.all() and whole.all():
        return inner.reshape(len(array), *shape), ok
    values = np.zeros((len(array), *shape), inner.dtype)
    rows = np.flatnonzero(ok)
    values[rows[whole]] = inner.reshape(-1, *shape)[whole]
    ok[rows] = whole
    return values, ok


_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})


def _parsed(name: str, column: pa.Array, errors: dict[int, str]) -> pa.Array:
    """Text as float64, null where it is no number; ``errors`` gets the cells that are neither."""
    try:
        return pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        return pa.array([_number(name, text, row, errors) for row, text in enumerate(column.to_pylist())])


def _number(name: str, text: str, row: int, errors: dict[int, str]) -> float | None:
    text = text.strip()
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    if text.lower() in _MISSING:
        return None
    try:
        return float(text)
    except ValueError:
        errors.setdefault(row, f"column {name!r} holds {text[:40]!r}, which is not a number")
        return None
