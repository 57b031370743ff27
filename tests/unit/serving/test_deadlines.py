"""A call that ends at its deadline, as told from one that its caller gave up."""

from __future__ import annotations

import pytest

from serving.deadlines import SLACK_SECONDS, is_at_deadline


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [(None, False), (-1, True), (0, True), (SLACK_SECONDS / 2, True), (SLACK_SECONDS * 2, False)],
)
def test_a_call_ends_at_its_deadline_if_little_or_nothing_is_left(remaining, expected):
    assert is_at_deadline(remaining) is expected
