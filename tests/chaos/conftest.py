"""Collected only by ``make test-chaos``, which says for how long each fault lasts."""

from __future__ import annotations

import os

import pytest

SECONDS = os.environ.get("NVISA_CHAOS_SECONDS")
collect_ignore_glob = [] if SECONDS else ["test_*.py"]


@pytest.fixture(scope="session")
def seconds() -> float:
    """How long to go on under a fault."""
    assert SECONDS is not None
    return float(SECONDS)
