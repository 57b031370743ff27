"""Which reader a path is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.manifest import InputSpec
from serving.readers import idx, npy, records
from serving.readers.source import DataError, Source, Split

FOLDER = "folder"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_SUPPORTED = (
    "IDX, .npy, .npz, .parquet, .csv, the binary files of CIFAR and STL-10, or a folder of IDX, Parquet or "
    "image files"
)


def open_source(
    path: Path | str,
    *,
    split: Split = "train",
    label_column: str | None = None,
    id_columns: Sequence[str] = (),
    feature_columns: Sequence[str] = (),
    read_labels: bool = True,
    expected: InputSpec | None = None,
    resize: bool = False,
) -> Source:
    """Open a data set.

    Parameters
    ----------
    path
        IDX, ``.npy``, ``.npz``, ``.parquet`` or ``.csv`` file, or a folder of IDX files (MNIST's names),
        Parquet parts or images; or what `serving.readers.records` reads.
    split
        Which half of a folder or NPZ file that has both; a lone file is read as it is.
    label_column
        Column (or NPZ array) with the labels: text or whole numbers. Never a feature. Of CIFAR-100, ``fine``
        or ``coarse``; of a folder of images, ``folder``: the name of the folder that an image lies in.
    id_columns
        Columns (or NPZ arrays) to hand through beside the rows. Never features. Images always have
        ``path``, relative to the folder.
    feature_columns
        Columns that make up a row, in this order; by default the only image or list column, or else all
        numeric ones, or those of ``expected``.
    read_labels
        ``False`` leaves labels unread: ``label_column`` is then only kept out of the features.
    expected
        What a model takes. Where rows may differ (images, lists), those that fit it are good and the rest
        are errors; without it the first readable row decides. If none of the first rows fits, the
        source's ``input`` tells what is there instead, for the caller to compare. Its columns are found by
        name, wherever they are in a table; what else there is is left out.
    resize
        Bring encoded images of other sizes to that of ``expected``, bilinearly.

    Raises
    ------
    DataError
        If there is nothing at ``path``, the format is not known, or the file is damaged or holds no rows.
    OSError
        If the operating system cannot read it.
    """
    path = Path(path)
    if path.is_dir():
        kind = _kind_of_folder(path, split)
    elif path.exists():
        kind = _kind_of_file(path)
    else:
        raise DataError(f"{path}: no such file or folder; check the path")
    if resize and kind not in ("images", "parquet"):
        raise DataError(
            f"{path}: holds no encoded images (a folder of them, or Parquet), so there is nothing to resize"
        )
    if kind == "records":
        if id_columns or feature_columns:
            raise DataError(
                f"{path}: these files have no columns, but {[*id_columns, *feature_columns]} were named"
            )
        files = records.find_records(path, split)
        assert files is not None
        return records.open_records(path, files, label_column=label_column, read_labels=read_labels)
    if kind in ("idx", "npy"):
        if label_column or id_columns or feature_columns:
            named = [*filter(None, [label_column]), *id_columns, *feature_columns]
            raise DataError(f"{path}: {kind.upper()} files have no columns, but {named} were named")
        if kind == "npy":
            return npy.open_npy(path)
        images = idx.find_images(path, split) if path.is_dir() else path
        assert images is not None
        return idx.open_idx(path, images, read_labels=read_labels)
    if kind == "npz":
        return npy.open_npz(
            path,
            split=split,
            label_column=label_column,
            id_columns=id_columns,
            feature_columns=feature_columns,
            read_labels=read_labels,
        )
    _need_data_extra(path)
    if kind == "images":
        from serving.readers.image_folder import ImageFolderSource

        if feature_columns or set(id_columns) - {"path"} or label_column not in (None, FOLDER):
            raise DataError(
                f"{path}: a folder of images has no columns but the id 'path' and the label {FOLDER!r}"
            )
        files = split_files(path, IMAGE_SUFFIXES, split)
        labelled = read_labels and label_column is not None
        return ImageFolderSource(path, files, expected, resize, labelled=labelled)

    from serving.readers.columns import ColumnChoice
    from serving.readers.csv import CsvSource
    from serving.readers.parquet import ParquetSource

    names = expected.columns if expected is not None else ()
    choice = ColumnChoice(label_column, tuple(id_columns), tuple(feature_columns), read_labels, names)
    if kind == "csv":
        return CsvSource(path, choice)
    files = split_files(path, frozenset({".parquet"}), split) if path.is_dir() else (path,)
    return ParquetSource(path, files, choice, expected, resize)


def split_files(folder: Path, suffixes: frozenset[str], split: Split) -> tuple[Path, ...]:
    """Files with one of ``suffixes`` anywhere under ``folder``, sorted by path; hidden ones are left out.

    If names or first folders say ``train`` or ``test``, only those of ``split`` are taken.

    Raises
    ------
    DataError
        If there are files for the other split only.
    """
    found = _files(folder, suffixes)
    by_split = {name: tuple(f for f in found if _split_of(folder, f) == name) for name in ("train", "test")}
    if not any(by_split.values()):
        return found
    if not by_split[split]:
        raise DataError(f"{folder}: has no files for split {split!r}; choose the other one")
    return by_split[split]


def _files(folder: Path, suffixes: frozenset[str]) -> tuple[Path, ...]:
    return tuple(
        sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in suffixes
            and not any(part[0] in "._" for part in path.relative_to(folder).parts)
            and path.is_file()
        )
    )


def _split_of(folder: Path, file: Path) -> str | None:
    first = file.relative_to(folder).parts[0].lower().replace("_", "-").replace(".", "-")
    return next((name for name in ("train", "test") if first == name or first.startswith(name + "-")), None)


def _kind_of_folder(path: Path, split: Split) -> str:
    if idx.find_images(path, split) is not None:
        return "idx"
    if records.find_records(path, split) is not None:
        return "records"
    has_parquet = bool(_files(path, frozenset({".parquet"})))
    has_images = bool(_files(path, IMAGE_SUFFIXES))
    if has_parquet and has_images:
        raise DataError(f"{path}: holds both Parquet and image files; name the folder of one kind")
    if not has_parquet and not has_images:
        names = sorted(entry.name for entry in path.iterdir())[:5]
        raise DataError(f"{path}: no data found, only {names}; supported: {_SUPPORTED}")
    return "parquet" if has_parquet else "images"


def _kind_of_file(path: Path) -> str:
    name = path.name.lower()
    if idx.is_idx_name(name):
        return "idx"
    if name.endswith((".csv", ".csv.gz")):
        return "csv"
    if path.suffix.lower() in (".npy", ".npz", ".parquet"):
        return path.suffix.lower()[1:]
    if records.find_records(path, "train") is not None:
        return "records"
    records.refuse_pickle(path)
    raise DataError(f"{path}: format not supported; supported: {_SUPPORTED}")


def _need_data_extra(path: Path) -> None:
    try:
        import PIL  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path}: reading it needs pyarrow and pillow; install nvisa[data]") from error
