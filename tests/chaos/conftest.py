"""Collected only by ``make test-chaos``, which says for how long each fault lasts."""

from __future__ import annotations

import os

import pytest

from tests.bundles import make_bundle
from tests.chaos.load import Answers

SECONDS = os.environ.get("NVISA_CHAOS_SECONDS")
collect_ignore_glob = [] if SECONDS else ["test_*.py"]


@pytest.fixture(scope="session")
def seconds() -> float:
    """How long to go on under a fault."""
    assert SECONDS is not None
    return float(SECONDS)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """One model, toy/1."""
    path = tmp_path_factory.mktemp("models")
    make_bundle(path)
    return path


@pytest.fixture(scope="session")
def answers(repository):
    """What it says of some rows."""
    return Answers(repository / "toy" / "1")
