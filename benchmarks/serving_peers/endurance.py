"""What takes longer: twice the capacity, and memory under a mixed load."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from serving_peers.cases import overload
from serving_peers.session import Places, put_load, started
from serving_peers.systems import System

_WARM_UP_SHARE = 0.2


def overloaded(
    system: System, echo: System, places: Places, rows: int, in_flight: int, seconds: float
) -> dict[str, Any]:
    """Peak, twice the peak, then half of it; the server on one processor and the load on the others.

    Otherwise more load would take the processors from the server, and one could not tell this from a server
    that breaks down.

    If to read a call and refuse it takes as long as ``echo``, empty, takes to answer it, then at the peak P,
    with E calls a second of the echo, a perfect server offered 2 P would answer (E - 2 P) / (E - P) of P, or
    none if E is less than 2 P: ``most_goodput_over_peak``.

    ``seconds``, a whole number from 2, is how long the peak is measured; twice of it takes twice as long.

    Raises
    ------
    RuntimeError
        If there is but one processor.
    """
    server, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise RuntimeError("overload needs two processors, one for the load generator")
    with started(echo, places, {server}) as it:
        (empty, *_), _ = put_load(it, places, overload(rows, in_flight, seconds)[:1], set(others))
    with started(system, places, {server}) as it:
        (peak, twice), _ = put_load(it, places, overload(rows, in_flight, seconds), set(others))
    half = int(2 * seconds)
    during, after = twice["by_second"][:half], twice["by_second"][half : half + int(seconds)]
    # The first second fills the queue.
    goodput = sum(second["answers"] for second in during[1:]) / (half - 1)
    best, refusals = peak["calls_per_second"], empty["calls_per_second"]
    return {
        "rows": rows,
        "peak_calls_per_second": best,
        "echo_calls_per_second": refusals,
        "most_goodput_over_peak": round((refusals - 2 * best) / (refusals - best), 3)
        if refusals > 2 * best
        else 0.0,
        "offered_over_peak": round(twice["offered_calls_per_second"] / best, 2),
        "sent_late_p99_ms": twice["sent_late_p99_ms"],
        "goodput_over_peak": round(goodput / best, 3),
        "peak_p99_ms": peak["p99_ms"],
        "accepted_p99_ms": max(second["p99_ms"] or 0.0 for second in during),
        "codes": twice["codes"],
        "wrong": peak["wrong"] + twice["wrong"],
        "after_refused_by_second": [second["refused"] for second in after],
        "after_p99_ms_by_second": [second["p99_ms"] for second in after],
    }


def remembers(system: System, places: Places, seconds: float) -> dict[str, Any]:
    """Memory under a mixed load of calls of 1 to 4,096 rows and of streams.

    The first fifth is warm-up. ``growth`` is the median of the last fifth over that of the second.
    """
    case = {"name": "mixed", "mixed": True, "rows": 1, "seconds": seconds, "warm": 0.0}
    with started(system, places) as it:
        (found,), taken = put_load(it, places, [case])
    samples = np.array(taken)
    end = samples[-1, 0]

    def median(begin: float, until: float) -> float:
        part = samples[(samples[:, 0] >= begin * end) & (samples[:, 0] <= until * end), 1]
        return float(np.median(part))

    early, late = median(_WARM_UP_SHARE, 2 * _WARM_UP_SHARE), median(1 - _WARM_UP_SHARE, 1.0)
    return {
        "seconds": seconds,
        "early_megabytes": round(early, 1),
        "late_megabytes": round(late, 1),
        "growth": round(late / early - 1, 4),
        "peak_megabytes": round(float(samples[:, 1].max()), 1),
        "by_tenth_megabytes": [round(median(part / 10, (part + 1) / 10), 1) for part in range(10)],
        "rows": round(found["rows_per_second"] * seconds),
        "codes": found["codes"],
        "wrong": found["wrong"],
    }
