"""Where features come from: the backbone's recipe, the images' form, and a few images with their features.

Beside a file of features lies ``FILE.origin.safetensors``. A fit keeps a copy in its run, so that the
backbone can be put before q(y|x) at export and features of another one are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import ValidationError

from serving.manifest import InputSpec
from training.checkpoint import CheckpointError, load_tensors, save_tensors
from training.recipe import Recipe

SUFFIX = ".origin.safetensors"
N_EXAMPLES = 64


@dataclass(frozen=True)
class Origin:
    """Where features come from.

    Attributes
    ----------
    backbone
        Its name, for people.
    recipe
        What decides the features of an image.
    images
        What one image looks like.
    examples, features
        Up to 64 of the images, uint8 ``(n, *images.shape)``, and their features, float32 ``(n, C)``.
    """

    backbone: str
    recipe: Recipe
    images: InputSpec
    examples: np.ndarray
    features: np.ndarray

    def save(self, path: Path, more: dict[str, Any] | None = None) -> None:
        """Write to ``path`` atomically, with ``more`` beside what `load` reads."""
        arrays = {"examples": self.examples, "features": self.features}
        save_tensors(
            path,
            {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()},
            {
                "backbone": self.backbone,
                "recipe": self.recipe.model_dump(mode="json"),
                "images": self.images.model_dump(mode="json"),
                **(more or {}),
            },
        )

    @classmethod
    def load(cls, path: Path) -> tuple[Self, dict[str, Any]]:
        """Read what `save` wrote: the origin, and ``more``.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged.
        """
        tensors, meta = load_tensors(path)
        try:
            origin = cls(
                backbone=str(meta.pop("backbone")),
                recipe=Recipe.model_validate(meta.pop("recipe")),
                images=InputSpec.model_validate(meta.pop("images")),
                examples=tensors["examples"].numpy(),
                features=tensors["features"].numpy(),
            )
        except (KeyError, ValidationError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        return origin, meta


def origin_file(features: Path) -> Path:
    """The file beside ``features`` that tells where they come from."""
    return features.with_name(features.name + SUFFIX)


def save_beside(origin: Origin, features: Path, more: dict[str, Any]) -> None:
    """Write where the file ``features`` comes from."""
    origin.save(origin_file(features), {**more, "features_sha256": _hash(features)})


def read_beside(files: Sequence[Path]) -> Origin | None:
    """Where the rows of ``files`` come from, or ``None`` if nothing beside them says so.

    Raises
    ------
    ValueError
        If what is said is of other content than the file's, or not the same of all files.
    """
    found: dict[Path, Origin | None] = {}
    for file in files:
        found[file] = None
        if origin_file(file).exists():
            found[file], more = Origin.load(origin_file(file))
            if more["features_sha256"] != _hash(file):
                raise CheckpointError(
                    f"{origin_file(file)} is of other features than {file} holds now: compute them again, or "
                    "remove it if they are from elsewhere"
                )
    if not found:
        return None
    first, *rest = found.items()
    for file, origin in rest:
        if (origin is None) != (first[1] is None):
            raise CheckpointError(
                f"{first[0]} and {file}: only one of them has {SUFFIX} beside it; compute both with one "
                "backbone"
            )
        check_same(first[1], origin, str(file))
    return first[1]


def check_same(expected: Origin | None, found: Origin | None, source: str) -> None:
    """Refuse features of another backbone, where both sides say whose they are.

    Raises
    ------
    ValueError
        If the recipes differ; the message says in what.
    """
    if expected is None or found is None or expected.recipe == found.recipe:
        return
    raise CheckpointError(
        f"{source}: its features are of another backbone: "
        f"{differences(expected, found.recipe, found.backbone)}"
    )


def differences(expected: Origin, recipe: Recipe, name: str) -> str:
    """What differs between the recipe of ``expected`` and another, in words."""
    old, new = expected.recipe.model_dump(), recipe.model_dump()
    said = [f"{key} is {new[key]}, not {old[key]}" for key in old if old[key] != new[key]]
    return f"{name}, not {expected.backbone}: {'; '.join(said)}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
