"""What is measured of each system."""

from __future__ import annotations

from typing import Any


def closed(rows: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """Callers that wait for their answer: ``rows`` a call, ``in_flight`` calls at once."""
    return {
        "name": f"{rows}x{in_flight}",
        "rows": rows,
        "in_flight": in_flight,
        "seconds": seconds,
        "warm": min(1.0, seconds / 2),
    }


def standard(seconds: float) -> list[dict[str, Any]]:
    """Closed loops, and single rows at half of what 64 callers got, at random times."""
    cases = [
        closed(rows, in_flight, seconds)
        for rows, in_flight in ((1, 1), (1, 64), (1, 128), (16, 16), (256, 8), (4096, 2))
    ]
    half = {
        "name": "half",
        "rows": 1,
        "of": "1x64",
        "steps": [(0.5, seconds)],
        "seconds": seconds,
        "warm": 0.5,
    }
    return [*cases, half]


def overload(rows: int, in_flight: int, seconds: float) -> list[dict[str, Any]]:
    """The peak; then twice the peak at random times, and at once after it half the peak."""
    peak = closed(rows, in_flight, seconds)
    steps = [(2.0, 2 * seconds), (0.5, seconds)]
    twice = {
        "name": "twice",
        "rows": rows,
        "of": peak["name"],
        "steps": steps,
        "seconds": 3 * seconds,
        "warm": 0.0,
        "by_second": True,
        "timeout": 10.0,
    }
    return [peak, twice]
