"""Changes of what is served while it is served: by looking at the repository, or as callers ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from serving.background import in_thread
from serving.bundle import BundleError
from serving.errors import NotReady, Refused, UnknownModel
from serving.metrics import Metrics
from serving.models import ModelState
from serving.repository import Repository
from serving.settings import ServerSettings
from serving.snapshot import Key, Snapshot, take_snapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """One version in the index: of the repository's folder, or loaded, or both."""

    name: str
    version: int
    state: ModelState | None
    reason: str


class ModelControl:
    """Loads and unloads, one change at a time. Create it in the server's event loop.

    Parameters
    ----------
    repository
        What is changed.
    settings
        Who may change it, and how often to look.
    metrics
        Where it shows that the repository cannot be read.
    """

    def __init__(self, repository: Repository, settings: ServerSettings, metrics: Metrics) -> None:
        self._repository = repository
        self._settings = settings
        self._unreadable = metrics.versions.unreadable
        self._last = repository.found
        self._problem = ""
        self._one_at_a_time = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        self._closed = False

    async def watch(self) -> None:
        """Look at the repository every ``poll_seconds``, for ever."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            # Not ready: it is asked to change something while the server stops.
            with contextlib.suppress(NotReady):
                await self.look()

    async def look(self) -> None:
        """Look once; take labels, and if they are polled bundles, that are as at the look before."""
        try:
            now = await self._snapshot()
        except BundleError as error:
            self._unreadable_because(str(error))
            return
        if not now.bundles:
            # A volume that is away leaves an empty folder; nobody empties a repository to stop serving.
            self._unreadable_because(f"model repository {self._settings.model_repository} has no bundle")
            return
        self._unreadable_because("")
        before, self._last = self._last, now
        await self._change(self._follow(before, now))

    async def load(self, name: str) -> None:
        """Make what is loaded of ``name`` what the repository has of it: all its versions, and its labels.

        The versions that can be loaded are, also if others cannot.

        Raises
        ------
        Refused
            If models are not controlled so, or a version cannot be loaded.
        UnknownModel
            If the repository has no such model.
        """
        self._check_explicit()
        try:
            found = await self._snapshot()
        except BundleError as error:
            raise Refused(str(error)) from error
        bundles = {key: mark for key, mark in found.bundles.items() if key[0] == name}
        if not bundles:
            there = ", ".join(found.labels) or "none"
            raise UnknownModel(f"no model {name[:128]!r} in the repository; it has {there}")
        await self._change(self._load(name, Snapshot(bundles, {name: found.labels[name]})))

    async def unload(self, name: str) -> None:
        """Unload all versions of ``name``, and return when their memory is free.

        Raises
        ------
        Refused
            If models are not controlled so.
        UnknownModel
            If no such model is loaded.
        """
        self._check_explicit()
        await self._change(self._unload(name))

    async def index(self) -> list[Listed]:
        """Return every version in the repository's folder, and every one loaded.

        Raises
        ------
        Refused
            If the folder cannot be read.
        """
        try:
            found = await self._snapshot()
        except BundleError as error:
            raise Refused(str(error)) from error
        listed = {key: Listed(*key, None, "not loaded") for key in found.bundles}
        listed |= {model.key: Listed(*model.key, *model.told()) for model in self._repository.models()}
        return [listed[key] for key in sorted(listed)]

    def close(self) -> None:
        """Begin no more changes, and do not wait for a bundle that is being loaded."""
        self._closed = True
        self._repository.abandon_loading()

    async def finished(self) -> None:
        """Wait for the changes that were begun."""
        if self._changes:
            await asyncio.wait(self._changes)

    async def _change(self, change: Coroutine[Any, Any, None]) -> None:
        """Make a change that goes on if its caller leaves."""
        if self._closed:
            change.close()
            raise NotReady("the server is stopping")
        task = asyncio.create_task(change, name="change of models")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _follow(self, before: Snapshot, now: Snapshot) -> None:
        settled, polls = now.settled(before), self._settings.model_control == "poll"
        async with self._one_at_a_time:
            if polls:
                for key in settled.bundles:
                    await self._take(key, settled)
            for name in self._repository.names():
                if name in settled.labels:
                    self._repository.take_labels(name, settled.labels[name])
                elif polls and name not in now.labels and name not in before.labels:
                    self._repository.take_labels(name, None)  # the whole model has gone
            if polls:
                known = {model.key for model in self._repository.models()}
                await self._drop(known - now.bundles.keys() - before.bundles.keys())

    async def _load(self, name: str, found: Snapshot) -> None:
        async with self._one_at_a_time:
            whys = [await self._take(key, found, again=True) for key in found.bundles]
            self._repository.take_labels(name, found.labels[name])
            known = {model.key for model in self._repository.versions(name)}
            whys += await self._drop(known - found.bundles.keys())
        if any(whys):
            raise Refused("; ".join(filter(None, whys)))

    async def _unload(self, name: str) -> None:
        async with self._one_at_a_time:
            models = self._repository.versions(name)
            if not models:
                there = ", ".join(self._repository.names()) or "none"
                raise UnknownModel(f"no model {name[:128]!r} is loaded; there is {there}")
            await self._repository.unload(models)

    async def _take(self, key: Key, found: Snapshot, *, again: bool = False) -> str:
        """Load what is new or has changed; why it cannot be.

        What failed, or fails, is tried ``again`` without a change only if told to.
        """
        model, mark = self._repository.version(key), found.bundles[key]
        again = again and model is not None and model.told()[0] is ModelState.FAILED
        if model is not None and model.tried == mark and not again:
            self._repository.set_kept(model, False)
            return ""
        return await self._repository.replace(key, mark)

    async def _drop(self, keys: set[Key]) -> list[str]:
        """Unload what is gone, except where a label points; why it is kept there."""
        gone = [model for key in sorted(keys) if (model := self._repository.version(key)) is not None]
        kept = [model for model in gone if self._repository.labels_of(model)]
        for model in kept:
            self._repository.set_kept(model, True)
        await self._repository.unload([model for model in gone if model not in kept])
        return [f"{model} is gone from the repository, and kept: a label points at it" for model in kept]

    def _snapshot(self) -> asyncio.Future[Snapshot]:
        return in_thread(partial(take_snapshot, self._settings.model_repository), "snapshot")

    def _check_explicit(self) -> None:
        control = self._settings.model_control
        if control != "explicit":
            raise Refused(
                f"this server was started with --model-control {control}; models are loaded and unloaded by "
                "call only with --model-control explicit"
            )

    def _unreadable_because(self, why: str) -> None:
        self._unreadable.set(bool(why))
        if why and why != self._problem:
            log.error("the model repository cannot be read; what is loaded goes on", extra={"why": why})
        self._problem = why
