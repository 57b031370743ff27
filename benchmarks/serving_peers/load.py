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
    call: Caller, record: Record, asked: list[Question], rate: float, until: float, timeout: float, seed: int
) -> float:
    """``rate`` calls a second at random times; returns the 99th percentile of how late they left, in s."""
    turn, rng, alarm = itertools.cycle(asked), random.Random(seed), Alarm()
    tasks: set[asyncio.Task[None]] = set()
    late = []

    async def one(question: Question, meant: float) -> None:
        record.add(question, meant, *await call.call(question.message, timeout))

    meant = time.monotonic()
    while (meant := meant + rng.expovariate(rate)) < until:
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
    call = caller(wire, plan["target"], case.get("connections", 1))
    timeout = case.get("timeout", 60.0)
    rate = case.get("rate") or (
        case["share"] * done[case["of"]]["calls_per_second"] if "of" in case else None
    )
    gc.collect()
    gc.freeze()
    result: dict[str, Any] = {"case": case["name"]}
    for seconds in filter(None, (case["warm"], case["seconds"])):
        record = Record(wire, plan["checked"])
        cpu, own, start = cpu_seconds(plan["pid"]), time.process_time(), time.monotonic()
        if mixed:
            assert isinstance(call, GrpcCaller)
            await mixed_load(call, record, asked, start + seconds, timeout)
        elif rate is None:
            await closed_loop(call, record, asked, case["in_flight"], start + seconds, timeout)
        else:
            late = await open_loop(call, record, asked, rate, start + seconds, timeout, case.get("seed", 0))
            result |= {"offered_calls_per_second": round(rate, 1), "sent_late_p99_ms": round(1e3 * late, 3)}
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
