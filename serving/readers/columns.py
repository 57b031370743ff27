"""Which columns of a table are the row, the label and the ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pyarrow import types

from serving.manifest import listed
from serving.readers.source import DataError

LABEL_NAMES = frozenset({"label", "labels", "y", "target", "targets", "class"})
ID_NAMES = frozenset({"id", "index", "row", "row_id", "__index_level_0__", "unnamed: 0", ""})


@dataclass(frozen=True)
class ColumnChoice:
    """What the user said about the columns, and what a model expects; see `serving.readers.open_source`."""

    label: str | None = None
    ids: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    read_labels: bool = True
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roles:
    """What each column is for. ``features`` is one column unless ``kind`` is ``"numeric"``.

    ``names`` are what the values of a row are called: the numeric columns, unless the user has put others in
    the place of those that a model expects.
    """

    kind: Literal["image", "list", "numeric"]
    features: tuple[str, ...]
    names: tuple[str, ...] = ()


def assign_roles(path: Path, schema: pa.Schema, choice: ColumnChoice) -> Roles:
    """Find the row in a table: the only image column, else the only list column, else all numeric ones.

    Where a model expects columns, those are the row, in its order, unless the user named others in their
    place, or there is none of them and an image or list column.

    Raises
    ------
    DataError
        If a named column is not there or named twice, nothing can be a row, there are several image or
        list columns to choose from, a numeric column looks like a label or an id and nobody said, or a table
        of numbers lacks a column that a model expects.
    """
    names = schema.names
    if not choice.features or sorted(choice.features) == sorted(choice.expected):
        choice = replace(choice, features=_expected_columns(path, schema, choice.expected))
    else:
        _refuse_other_places(path, choice)
    there = Counter(names)
    if twice := sorted(name for name, count in there.items() if count > 1):
        raise DataError(f"{path}: has more than one column named {listed(twice)}; rename them")
    others = [*([choice.label] if choice.label else []), *choice.ids]
    named = [*others, *choice.features]
    missing = [name for name in named if name not in there]
    if missing:
        raise DataError(f"{path}: has no column {listed(missing)}; it has {listed(names)}")
    repeated = Counter(choice.features) + Counter({*others} & {*choice.features})
    if again := sorted(name for name, count in repeated.items() if count > 1):
        raise DataError(f"{path}: a feature column is named twice, or also as label or id: {listed(again)}")
    candidates = choice.features or tuple(n for n in names if n != choice.label and n not in choice.ids)
    images = tuple(n for n in candidates if is_image(schema.field(n).type))
    lists = tuple(n for n in candidates if is_list(schema.field(n).type))
    numeric = tuple(n for n in candidates if is_number(schema.field(n).type))
    if choice.features:
        usable = {*images, *lists, *numeric}
        if odd := [f"{n} ({schema.field(n).type})" for n in candidates if n not in usable]:
            raise DataError(
                f"{path}: columns that are to be features hold no numbers, lists or images: {listed(odd)}"
            )
        if len(images) + len(lists) + bool(numeric) != 1:
            kinds = [f"{n} ({schema.field(n).type})" for n in candidates]
            raise DataError(
                f"{path}: the feature columns {listed(kinds)} do not make up a row; name one image column, "
                "one list column, or numeric columns only"
            )
    if len(images) + len(lists) > 1:
        raise DataError(
            f"{path}: the columns {[*images, *lists]} could each be the row; name one with --feature-columns"
        )
    if images:
        return Roles("image", images)
    if lists:
        return Roles("list", lists)
    if not numeric:
        raise DataError(
            f"{path}: no image, list or numeric column to make up a row among {listed(candidates)}"
        )
    if not choice.features:
        _refuse_suspects(path, numeric)
    renamed = choice.expected and choice.expected != numeric
    return Roles("numeric", numeric, () if renamed else numeric)


def _expected_columns(path: Path, schema: pa.Schema, expected: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that a model expects, or none if the table has its row in one column instead of them."""
    there = set(schema.names)
    missing = [name for name in expected if name not in there]
    none_of_them = len(missing) == len(expected)
    if none_of_them and any(is_image(field.type) or is_list(field.type) for field in schema):
        return ()
    if missing:
        raise DataError(
            f"{path}: has no column {listed(missing)}, which the model was fitted on; it has "
            f"{listed(schema.names)}; rename its columns, or name those to take instead, in the model's "
            "order, with --feature-columns"
        )
    return expected


def _refuse_other_places(path: Path, choice: ColumnChoice) -> None:
    """Refuse columns in place of those that a model expects, if one of its own is among them elsewhere."""
    known = set(choice.expected)
    for name, place in zip(choice.features, choice.expected, strict=False):
        if name != place and name in known:
            raise DataError(
                f"{path}: --feature-columns has {name!r} in the place of the model's {place!r}, and the "
                "model has a column of that name; name columns in its order"
            )


def is_image(kind: pa.DataType) -> bool:
    """Whether a column can hold encoded images: binary, or a struct with a binary field ``bytes``."""
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds (nested) lists of numbers."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_list(kind.storage_type)
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return is_list(kind.value_type) or is_number(kind.value_type)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column can be a feature. A column that is all null counts, so that it is not lost unseen."""
    return any(
        test(kind)
        for test in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    )


def _refuse_suspects(path: Path, numeric: tuple[str, ...]) -> None:
    labels = [name for name in numeric if name.lower() in LABEL_NAMES]
    if labels:
        raise DataError(
            f"{path}: column {labels[0]!r} looks like a label and would become a feature; name it with "
            "--label-column, or say what the features are with --feature-columns"
        )
    ids = [name for name in numeric if name.lower() in ID_NAMES]
    if ids:
        raise DataError(
            f"{path}: column {ids[0]!r} looks like an id and would become a feature; name it with "
            "--id-columns, or say what the features are with --feature-columns"
        )
