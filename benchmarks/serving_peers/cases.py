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
    half = {"name": "half", "rows": 1, "of": "1x64", "share": 0.5, "seconds": seconds, "warm": 0.5}
    return [*cases, half]


def overload(rows: int, in_flight: int, seconds: float) -> list[dict[str, Any]]:
    """Peak, then twice the peak at random times, then half of it."""
    peak = closed(rows, in_flight, seconds)
    base = {"rows": rows, "of": peak["name"], "warm": 0.0, "by_second": True, "timeout": 10.0}
    twice = base | {"name": "twice", "share": 2.0, "seconds": 2 * seconds}
    after = base | {"name": "after", "share": 0.5, "seconds": seconds}
    return [peak, twice, after]
