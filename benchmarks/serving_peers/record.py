"""What became of the calls of one case."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving_peers.wires import WIRES, Question


class Record:
    """What happened in the window that is measured.

    Attributes
    ----------
    codes
        Calls by status.
    wrong
        Calls answered OK and wrongly.
    checked
        Whether to compare; the echo's answers are none.
    answers
        Of each call answered rightly: end and latency in seconds, and rows.
    refused
        When each call that was not answered OK began, or should have.
    errors
        An example of what came with each status but OK.
    """

    def __init__(self, wire: str, checked: bool = True) -> None:
        self.codes: Counter[str] = Counter()
        self.wrong = 0
        self.answers: list[tuple[float, float, int]] = []
        self.refused: list[float] = []
        self.errors: dict[str, str] = {}
        self._wire, self._checked = WIRES[wire], checked

    def add(self, question: Question, since: float, code: str, reply: bytes) -> None:
        """Count one call that began, or should have, at ``since`` and ends now."""
        now = time.monotonic()
        self.codes[code] += 1
        if code != "OK":
            self.refused.append(since)
            self.errors.setdefault(code, reply[:300].decode(errors="replace"))
            return
        try:
            answer = self._wire.answer(reply)
            right = not self._checked or question.is_right(answer)
        except (DecodeError, ValueError) as error:
            right = False
            self.errors.setdefault("unreadable", str(error)[:300])
        if right:
            self.answers.append((now, now - since, question.n_rows))
        else:
            self.wrong += 1


def summary(
    record: Record, wall: float, cpu: float, own: float, start: float, *, by_second: bool
) -> dict[str, Any]:
    """Rates, latencies and costs of one case, for JSON.

    Parameters
    ----------
    wall, cpu, own
        Seconds: how long it took, and processor time of the server and of the load generator.
    start
        When it began, in seconds of `time.monotonic`.
    by_second
        Also what became of the calls of each second.
    """
    n_rows = sum(rows for _, _, rows in record.answers)
    latencies = np.array([latency for _, latency, _ in record.answers])
    found: dict[str, Any] = {
        "calls_per_second": round(len(record.answers) / wall, 1),
        "rows_per_second": round(n_rows / wall, 1),
        "codes": dict(record.codes),
        "wrong": record.wrong,
        "server_cpu_seconds_per_million_rows": round(cpu / n_rows * 1e6, 2) if n_rows else None,
        "server_cores": round(cpu / wall, 2),
        "load_cores": round(own / wall, 2),
    }
    if record.errors:
        found["errors"] = record.errors
    if len(latencies):
        for q in (50, 95, 99):
            found[f"p{q}_ms"] = round(float(np.percentile(latencies, q)) * 1e3, 3)
    if by_second:
        found["by_second"] = _by_second(record, start)
    return found


def _by_second(record: Record, start: float) -> list[dict[str, Any]]:
    """For each second: right answers that came in it; refusals and 99th percentile of calls sent in it."""
    ends = np.array([end for end, _, _ in record.answers]) - start
    latencies = np.array([latency for _, latency, _ in record.answers])
    refused = np.array(record.refused) - start
    sent = ends - latencies
    found = []
    for second in range(int(max(ends.max(initial=0), refused.max(initial=0))) + 1):
        part = latencies[(sent >= second) & (sent < second + 1)]
        found.append(
            {
                "answers": int(((ends >= second) & (ends < second + 1)).sum()),
                "refused": int(((refused >= second) & (refused < second + 1)).sum()),
                "p99_ms": round(float(np.percentile(part, 99)) * 1e3, 3) if len(part) else None,
            }
        )
    return found
