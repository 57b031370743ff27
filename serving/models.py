"""The versions of models that a server knows, by name and number, whatever their state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.batcher import Batcher
from serving.call_queue import Answer
from serving.engine import Engine
from serving.errors import UnknownModel
from serving.failing import FailureWatch
from serving.manifest import Manifest
from serving.metrics import ModelMetrics
from serving.snapshot import Fingerprint, Key


class ModelState(StrEnum):
    """Where a model stands between its files and the first answer."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


STATES = tuple(ModelState)


@dataclass(eq=False)
class Model:
    """One version of one model; everything after ``tried`` is there once it is READY.

    Attributes
    ----------
    tried
        The files as they were when they were last read, whether they could be used or not: they are read
        again once they differ.
    retiring
        Its batcher is being closed, so the batcher's end is no fault.
    kept
        Its files are gone, but a label points at it.
    failing
        Why every run of it fails; empty if it does not. Calls are refused meanwhile.
    watch
        Finds that out.
    """

    name: str
    version: int
    path: Path
    state: ModelState = ModelState.LOADING
    reason: str = ""
    tried: Fingerprint | None = None
    manifest: Manifest | None = None
    engine: Engine | None = None
    batcher: Batcher | None = None
    metrics: ModelMetrics | None = None
    retiring: bool = False
    kept: bool = False
    failing: str = ""
    watch: FailureWatch | None = None

    @property
    def key(self) -> Key:
        """Name and version."""
        return self.name, self.version

    @property
    def answers(self) -> bool:
        """Whether calls are let in."""
        return self.state is ModelState.READY and not self.failing

    def told(self) -> tuple[ModelState, str]:
        """Return state and reason as callers are told: what fails on every run is FAILED, though loaded."""
        if self.state is ModelState.READY and self.failing:
            return ModelState.FAILED, f"it fails on every run: {self.failing}"
        return self.state, self.reason

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Assigns(Protocol):
    """What answers rows: a batcher, or one with a shadow behind it."""

    async def assign(
        self, x: np.ndarray, *, deadline_ns: int | None = None, wait_for_room: bool = False
    ) -> Answer:
        """Assign rows; see `Batcher.assign`."""
        ...


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A version that answers."""

    manifest: Manifest
    batcher: Assigns


class Catalogue:
    """All versions of all models, in order. A change makes new dictionaries: the watchdog reads them."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[int, Model]] = {}

    def __iter__(self) -> Iterator[Model]:
        """By name and version."""
        return (model for versions in self._by_name.values() for model in versions.values())

    def names(self) -> list[str]:
        """Names of the models, sorted."""
        return list(self._by_name)

    def versions(self, name: str) -> list[Model]:
        """All versions of ``name``, ascending; empty if there is no such model."""
        return list(self._by_name.get(name, {}).values())

    def get(self, name: str, version: int) -> Model | None:
        """Return this version, or ``None``."""
        return self._by_name.get(name, {}).get(version)

    def put(self, model: Model) -> None:
        """Add ``model``, in place of what has its name and version."""
        versions = dict(sorted((self._by_name.get(model.name, {}) | {model.version: model}).items()))
        self._by_name = dict(sorted((self._by_name | {model.name: versions}).items()))

    def remove(self, model: Model) -> None:
        """Take ``model`` out, and its name with the last version."""
        versions = {v: kept for v, kept in self._by_name[model.name].items() if v != model.version}
        others = {name: kept for name, kept in self._by_name.items() if name != model.name}
        self._by_name = dict(sorted((others | ({model.name: versions} if versions else {})).items()))

    def find(self, name: str, version: int) -> Model:
        """Return this version.

        Raises
        ------
        UnknownModel
            If there is none; the message names those that there are.
        """
        versions = self._by_name.get(name)
        if versions is None:
            there = ", ".join(self._by_name) or "no model"
            raise UnknownModel(f"no model {name[:128]!r}; this server has {there}")
        if version not in versions:
            there = ", ".join(map(str, versions))
            raise UnknownModel(f"model {name!r} has no version {version}; it has {there}")
        return versions[version]

    def able(self, name: str) -> Model:
        """Return the largest READY version of ``name``; else the largest that may become so, or failed.

        Raises
        ------
        UnknownModel
            If there is no such model.
        """
        versions = self.versions(name)
        if not versions:
            self.find(name, 0)
        for state in (ModelState.READY, ModelState.LOADING):
            found = [model for model in versions if model.state is state]
            if found:
                return found[-1]
        return versions[-1]
