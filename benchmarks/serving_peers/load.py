"""The load generator, a process of its own: a plan comes as JSON on stdin, results go as JSON to stdout.

Run as ``python -m serving_peers.load`` by `serving_peers.session`. Closed loops have a number of calls in
flight; open loops send at random times (Poisson) whatever the server does, and measure each call's latency
from the time at which it was meant to be sent, so that a server that stalls is charged for all calls that
it made wait. Requests are built before, replies are compared with the engine's answers as they come.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from serving_peers.callers import Caller, GrpcCaller, caller
from serving_peers.mixed import mixed_load, sizes
from serving_peers.model import Rows
from serving_peers.processes import cpu_seconds
from serving_peers.record import Record, summary
from serving_peers.timer import Alarm
from serving_peers.wires import WIRES, Question, questions

_BYTES_OF_REQUESTS = 32 * 2**20


async def closed_loop(
    call: Caller, record: Record, asked: list[Question], in_flight: int, until: float, timeout: float
) -> None:
    """``in_flight`` callers, each of which sends the next request when it has its answer."""
    turn = itertools.cycle(asked)

    async def work() -> None:
        while (since := time.monotonic()) < until:
            question = next(turn)
            record.add(question, since, *await call.call(question.message, timeout))

    await asyncio.gather(*(work() for _ in range(in_flight)))


async def open_loop(
    call: Caller,
    record: Record,
    asked: list[Question],
    steps: list[tuple[float, float]],
    start: float,
    timeout: float,
) -> float:
    """Calls at random times; each of ``steps`` is calls a second, and for how many seconds.

    Returns the 99th percentile of how late they left, in seconds.
    """
    turn, rng, alarm = itertools.cycle(asked), random.Random(0), Alarm()
    tasks: set[asyncio.Task[None]] = set()
    late, begin = [], start

    async def one(question: Question, meant: float) -> None:
        record.add(question, meant, *await call.call(question.message, timeout))

    for rate, seconds in steps:
        meant = begin
        begin += seconds
        while (meant := meant + rng.expovariate(rate)) < begin:
            if meant > time.monotonic():
                await alarm.until(meant)
            else:
                await asyncio.sleep(0)  # behind, but replies must be read
            late.append(time.monotonic() - meant)
            task = asyncio.create_task(one(next(turn), meant))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    alarm.close()
    return float(np.percentile(late, 99)) if late else 0.0


async def run_case(
    case: dict[str, Any], plan: dict[str, Any], rows: Rows, done: dict[str, Any]
) -> dict[str, Any]:
    """Warm up, then measure, one case; see `serving_peers.cases`."""
    wire, size = plan["wire"], case["rows"]
    count = int(np.clip(_BYTES_OF_REQUESTS // (size * 784), 4, 512))
    mixed = case.get("mixed", False)
    wanted = sizes(256, len(rows.x)) if mixed else [size] * count
    asked = questions(WIRES[wire], rows, wanted)
    call = caller(wire, plan["target"], plan["connections"])
    timeout = case.get("timeout", 60.0)
    gc.collect()
    gc.freeze()
    result: dict[str, Any] = {"case": case["name"]}
    steps = case.get("steps", [])
    phases = [(case["warm"], [(share, case["warm"]) for share, _ in steps[:1]]), (case["seconds"], steps)]
    for seconds, shares in phases if case["warm"] else phases[1:]:
        record = Record(wire, plan["checked"])
        cpu, own, start = cpu_seconds(plan["pid"]), time.process_time(), time.monotonic()
        if mixed:
            assert isinstance(call, GrpcCaller)
            await mixed_load(call, record, asked, start + seconds, timeout)
        elif "in_flight" in case:
            await closed_loop(call, record, asked, case["in_flight"], start + seconds, timeout)
        else:
            rate = done[case["of"]]["calls_per_second"]
            rates = [(share * rate, length) for share, length in shares]
            late = await open_loop(call, record, asked, rates, start, timeout)
            result |= {"offered_calls_per_second": round(rates[0][0], 1)}
            result |= {"sent_late_p99_ms": round(1e3 * late, 3)}
        wall = time.monotonic() - start
        cpu, own = cpu_seconds(plan["pid"]) - cpu, time.process_time() - own
    await call.close()
    return result | summary(record, wall, cpu, own, start, by_second=case.get("by_second", False))


async def run(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Run all cases of the plan, one after the other."""
    rows = Rows.load(Path(plan["rows"]))
    done: dict[str, Any] = {}
    for case in plan["cases"]:
        done[case["name"]] = await run_case(case, plan, rows, done)
    return list(done.values())


if __name__ == "__main__":
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
