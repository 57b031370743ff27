"""The paper's data sets by name: where they lie below the data folder, and what the paper does with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.manifest import InputSpec
from serving.readers import DataError, Split
from serving.readers.idx import find_images
from training.data import Data, load

SPLITS: tuple[Split, Split] = ("train", "test")
_SUFFIXES = (".parquet", ".npz")


class MissingData(ValueError):
    """A data set is not there; the message says what to put where."""


@dataclass(frozen=True)
class DataSet:
    """A column of Table I.

    Attributes
    ----------
    n_clusters, latent_dim, n_samples
        K, L and M of §III-A.
    pixels
        Whether the paper clusters pixels, or a backbone's features.
    """

    name: str
    title: str
    n_clusters: int = 10
    latent_dim: int = 10
    n_samples: int = 15
    pixels: bool = False


DATASETS = {
    each.name: each
    for each in (
        DataSet("mnist", "MNIST", pixels=True),
        DataSet("fashion-mnist", "Fashion-MNIST", latent_dim=16, pixels=True),
        DataSet("stl10", "STL-10", latent_dim=5),
        DataSet("cifar10", "CIFAR-10"),
        DataSet("cifar100", "CIFAR-100", n_clusters=100, n_samples=50),
    )
}


@dataclass(frozen=True)
class Rows:
    """Rows of a data set with their labels, which are for scoring alone.

    Attributes
    ----------
    train, test
        ``(n, *spec.shape)``.
    train_labels, test_labels
        int64 ``(n,)``.
    source
        What the rows are: ``pixels``, or the backbone's name.
    fingerprint
        Changes when the rows do.
    """

    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray
    spec: InputSpec
    source: str
    fingerprint: str


@dataclass(frozen=True)
class Place:
    """Where a data set was found: path and label column of each part, and what the rows are."""

    paths: tuple[Path, Path]
    label_column: str | None
    source: str


def find(dataset: DataSet, folder: Path) -> Place:
    """Look for a data set below ``folder``, without reading it.

    Pixels are a folder of IDX files; features are two files ``NAME-features-BACKBONE-train`` and ``-test``,
    Parquet or NPZ, as ``nvisa-train features`` writes them. Where there are no features but a folder
    ``NAME`` with Parquet images, their pixels are taken, and the table says so.

    Raises
    ------
    MissingData
        If it is not there, or more than one thing could be meant.
    """
    own = folder / dataset.name
    if dataset.pixels:
        if not _has_images(own):
            raise MissingData(
                f"{dataset.title}: no IDX files in {own}; put its four files there, "
                "train-images-idx3-ubyte.gz and so on"
            )
        return Place((own, own), None, "pixels")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob(f"{dataset.name}-features*")):
        name = re.fullmatch(rf"{dataset.name}-features[-_.]?(.*?)[-_.]?(train|test)", path.stem)
        if name and path.suffix in _SUFFIXES:
            found.setdefault(name[1], {})[name[2]] = path
    pairs = {backbone: parts for backbone, parts in found.items() if len(parts) == len(SPLITS)}
    if len(pairs) > 1:
        raise MissingData(
            f"{dataset.title}: {folder} has features of several backbones ({', '.join(map(repr, pairs))}); "
            "leave one there"
        )
    if pairs:
        ((backbone, parts),) = pairs.items()
        column = "label" if parts["train"].suffix == ".parquet" else None
        return Place((parts["train"], parts["test"]), column, backbone or "features")
    if any(own.glob("*.parquet")):
        return Place((own, own), "label", "pixels")
    raise MissingData(
        f"{dataset.title}: no {folder / dataset.name}-features-BACKBONE-train.parquet and -test.parquet "
        "(or .npz); `nvisa-train features` makes them from the images"
    )


def read(dataset: DataSet, folder: Path, most: int | None = None, *, seed: int = 0) -> Rows:
    """Read a data set.

    Parameters
    ----------
    most
        Take this many training rows at random, a function of ``seed``; all by default.

    Raises
    ------
    MissingData
        If it is not there.
    DataError
        If a file is damaged.
    ValueError
        If it has no labels to score with.
    """
    place = find(dataset, folder)
    train, test = (
        load(str(path), split=split, label_column=place.label_column, labels=True)
        for path, split in zip(place.paths, SPLITS, strict=True)
    )
    labels = [_labels(dataset, part) for part in (train, test)]
    chosen: slice | np.ndarray = slice(None)
    which = "all"
    if most is not None and most < len(train.x):
        chosen = np.sort(np.random.default_rng(seed).choice(len(train.x), most, replace=False))
        which = f"{most}:{seed}"
    return Rows(
        train.x[chosen],
        test.x,
        labels[0][chosen],
        labels[1],
        train.spec,
        place.source,
        f"{train.fingerprint}:{test.fingerprint}:{which}",
    )


def _has_images(folder: Path) -> bool:
    """Whether both parts' IDX files are there."""
    try:
        return folder.is_dir() and all(find_images(folder, split) is not None for split in SPLITS)
    except DataError:  # one part alone
        return False


def _labels(dataset: DataSet, part: Data) -> np.ndarray:
    if part.labels is None:
        raise ValueError(f"{dataset.title}: {part.name} has no labels, without which nothing can be scored")
    return part.labels
