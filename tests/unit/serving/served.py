"""Models that are served without a port: for tests of what changes them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import numpy as np
import pytest

from serving.engine import FakeEngine
from serving.labels import LABELS_FILE
from serving.metrics import Metrics
from serving.model_control import ModelControl
from serving.repository import Repository
from serving.settings import ServerSettings
from tests.bundles import random_rows

ROWS = random_rows(5)


class Numbered(FakeEngine):
    """Answers as a fake engine, and the version is added: who answered can be told."""

    def __init__(self, version, n_clusters=10):
        super().__init__(n_clusters)
        self.version = version

    def assign(self, x):
        return super().assign(x + np.uint8(self.version))


def expected(version):
    return Numbered(version).assign(ROWS).clusters.tolist()


def numbered(bundle, *_):
    return Numbered(bundle.manifest.version, bundle.manifest.n_clusters)


class Served:
    """A repository that serves, its control, and what shows of them."""

    def __init__(self, path, build_engine=numbered, **settings):
        values = {
            "model_control": "poll",
            "device": "cpu",
            "grace_seconds": 30.0,
            "inline_seconds": 0.0,
        } | settings
        self.path = path
        self.metrics = Metrics()
        self.settings = ServerSettings(model_repository=path, **values)
        self.repository = Repository(self.settings, self.metrics, build_engine)
        self.control = ModelControl(self.repository, self.settings, self.metrics)

    async def look(self, times=2):
        for _ in range(times):
            await self.control.look()

    async def ask(self, version=0, label="", key="", name="toy"):
        """Version and clusters that ``ROWS`` get."""
        model = self.repository.get(name, version, label, key)
        answer = await model.batcher.assign(ROWS)
        return model.manifest.version, answer.clusters.tolist()

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, {key: str(v) for key, v in labels.items()})

    def of_version(self, version):
        return [
            sample
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.labels.get("model") == "toy" and sample.labels.get("version") == str(version)
        ]

    def label(self, text):
        write(self.path / "toy" / LABELS_FILE, text)


def write(path, text):
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


@asynccontextmanager
async def serving(path, build_engine=numbered, **settings):
    """What a server does with models, without its ports."""
    served = Served(path, build_engine, **settings)
    # Here unloads collect no garbage: that takes long in a process of tests, and frees what should be free.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.version_lifecycle.give_back", lambda: None)
        served.repository.load()
        served.repository.start()
        try:
            yield served
        finally:
            served.control.close()
            await served.control.finished()
            await served.repository.close()
