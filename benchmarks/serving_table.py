"""The tables of ``results/serving.json``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from serving_peers.systems import SYSTEMS

Turn = dict[str, Any]


def render(result: dict[str, Any], markdown: Callable[..., str]) -> str:
    """All tables, and what they are of."""
    parts = [markdown(_HEADER, _lines(result))]
    if any("nvisa" in turns for turns in result["rounds"]):
        parts.append(markdown(["measure", "goal", "found"], _goals(result)))
    if missing := result.get("unavailable"):
        parts.append("".join(f"{SYSTEMS[name].title}: {why}\n" for name, why in missing.items()))
    loops = [turns["loop"] for turns in result["rounds"]]
    best = max(loops, key=lambda way: way["rows_per_second"])
    parts.append(
        f"ONNX Runtime's loop: {_number(_median(way['rows_per_second'] for way in loops))} rows/s and "
        f"{_median(way['cpu_seconds_per_million_rows'] for way in loops):.1f} CPU seconds per million rows, "
        f"{best['batch']} rows a run, {best['sessions']} at once, threads each: {best['threads']}; one row "
        f"alone {_median(way['single_row_ms'] for way in loops):.3f} ms. Medians of {len(loops)} rounds. "
        f"Machine: {result['machine']}. Versions: {_versions(result)}."
        + (f" Note: {result['note']}." if result["note"] else "")
        + "\n"
    )
    return "\n".join(parts)


_HEADER = [
    "server",
    "lone row, p50 ms",
    "single rows, 64 in flight, calls/s",
    "the same from h2load",
    "16 rows, 16 in flight, calls/s",
    "256 rows, rows/s (share)",
    "4,096 rows, rows/s (share)",
    "half load, p50 / p99 ms",
    "CPU s per million rows at 256",
    "start, s",
    "memory, MB",
    "packages, MB",
    "wrong",
]


def _lines(result: dict[str, Any]) -> list[list[str]]:
    rounds = result["rounds"]
    packages = result.get("packages_megabytes", {})
    return [
        _line(name, rounds, packages.get(name)) for name in SYSTEMS if any(name in turns for turns in rounds)
    ]


def _line(name: str, rounds: list[dict[str, Turn]], packages_megabytes: int | None) -> list[str]:
    turns = [each[name] for each in rounds if name in each]

    def of(case: str, key: str) -> float | None:
        return _median_or_none(turn["cases"].get(case, {}).get(key) for turn in turns)

    def share(case: str) -> str:
        rate = _number(of(case, "rows_per_second"))
        found = _median_or_none(_share(each, name, case) for each in rounds if name in each)
        return rate if found is None or name == "echo" else f"{rate} ({found:.2f})"

    cases = [case for turn in turns for case in turn["cases"].values() if "codes" in case]
    failed = sum(n for case in cases for code, n in case["codes"].items() if code != "OK")
    wrong = "–" if name == "echo" else str(sum(case["wrong"] for case in cases))
    fewer = f" ({len(turns)} of the rounds)" if len(turns) < len(rounds) else ""
    return [
        SYSTEMS[name].title + fewer,
        _number(of("1x1", "p50_ms"), 2),
        _number(of("1x64", "calls_per_second")),
        _number(of("h2load 1x64", "calls_per_second")),
        _number(of("16x16", "calls_per_second")),
        share("256x8"),
        share("4096x2"),
        f"{_number(of('half', 'p50_ms'), 2)} / {_number(of('half', 'p99_ms'), 1)}",
        _number(of("256x8", "server_cpu_seconds_per_million_rows"), 1),
        _number(_median(turn["start_seconds"] for turn in turns), 1),
        _number(max(turn["peak_megabytes"] for turn in turns)),
        _number(packages_megabytes),
        wrong + (f", {failed} failed" if failed else ""),
    ]


def bound(turns: dict[str, Turn], case: str) -> float:
    """Rows a second if model and transport took turns: 1 / (1 / loop + 1 / echo)."""
    echo = turns["echo"]["cases"][case]["rows_per_second"]
    return 1 / (1 / turns["loop"]["rows_per_second"] + 1 / echo)


def _share(turns: dict[str, Turn], name: str, case: str) -> float | None:
    if "echo" not in turns:
        return None
    return float(turns[name]["cases"][case]["rows_per_second"]) / bound(turns, case)


def _goals(result: dict[str, Any]) -> list[list[str]]:
    rounds = [turns for turns in result["rounds"] if "nvisa" in turns]

    def ratio(case: str, key: str, other: str, *, plus: bool = False, name: str = "nvisa") -> str:
        found = []
        for turns in rounds:
            if other in turns and name in turns and case in turns[other]["cases"]:
                extra = turns["loop"]["single_row_ms"] if plus else 0.0
                found.append(turns[name]["cases"][case][key] / (turns[other]["cases"][case][key] + extra))
        return f"{_median(found):.2f} ×" if found else "not measured"

    def shares(case: str) -> str:
        found = [share for turns in rounds if (share := _share(turns, "nvisa", case)) is not None]
        return f"{_median(found):.2f} ×" if found else "not measured"

    cpu = [
        turns["nvisa"]["cases"]["256x8"]["server_cpu_seconds_per_million_rows"]
        / turns["loop"]["cpu_seconds_per_million_rows"]
        for turns in rounds
    ]
    of_loop_and_echo = "1 / (1 / loop + 1 / echo)"
    rows = [
        [f"256 rows a call, rows/s over {of_loop_and_echo}", "≥ 0.95", shares("256x8")],
        [f"4,096 rows a call, rows/s over {of_loop_and_echo}", "≥ 0.95", shares("4096x2")],
        ["single rows, 64 in flight, over the echo", "≥ 0.8", ratio("1x64", "calls_per_second", "echo")],
        ["the same over the naive server", "≥ 2", ratio("1x64", "calls_per_second", "naive")],
        ["the same over PyTriton", "≥ 2", ratio("1x64", "calls_per_second", "pytriton")],
        ["a lone row, p50 over the naive server's", "≤ 1.2", ratio("1x1", "p50_ms", "naive")],
        [
            "half load, p50 over the echo's plus one model run",
            "≤ 1.5",
            ratio("half", "p50_ms", "echo", plus=True),
        ],
        [
            "half load, p99 over the echo's plus one model run",
            "≤ 2",
            ratio("half", "p99_ms", "echo", plus=True),
        ],
        [
            "single rows from h2load, two workers over one",
            "≥ 1.5",
            ratio("h2load 1x64", "calls_per_second", "nvisa", name="nvisa-2"),
        ],
        ["CPU per million rows at 256, over the loop's", "≤ 1.25", f"{_median(cpu):.2f} ×"],
        ["start to first answer", "≤ 1 s", f"{_median(t['nvisa']['start_seconds'] for t in rounds):.2f} s"],
        ["memory (PSS), most", "≤ 120 MB", f"{max(t['nvisa']['peak_megabytes'] for t in rounds):.0f} MB"],
    ]
    rows += [_overload(run) for run in result.get("overload", [])]
    if "memory" in result:
        run = result["memory"]
        rows.append(
            [
                f"memory over {run['seconds'] / 60:.0f} minutes, {run['rows'] / 1e6:.0f} million rows, mixed",
                "within 2 %",
                f"{run['early_megabytes']} to {run['late_megabytes']} MB, {100 * run['growth']:+.1f} %; "
                f"{run['wrong']} wrong",
            ]
        )
    return rows


def _overload(run: dict[str, Any]) -> list[str]:
    late = run["sent_late_p99_ms"]
    after = ", ".join("–" if ms is None else f"{ms:.0f}" for ms in run["after_p99_ms_by_second"])
    return [
        f"{run['offered_over_peak']:g} × the peak, {run['rows']} rows a call: answers over the peak's",
        "≥ 0.9",
        f"{run['goodput_over_peak']:.2f} ×, where refusals at the echo's cost leave "
        f"{run['most_goodput_over_peak']:.2f}; p99 of what is accepted {run['accepted_p99_ms']:.0f} ms, at "
        f"the peak {run['peak_p99_ms']:.0f}; in the seconds after {after}, "
        f"{sum(run['after_refused_by_second'])} refused"
        + (f"; the load generator was {late:.0f} ms late itself" if late > 10 else ""),
    ]


def _versions(result: dict[str, Any]) -> str:
    ours = [f"{name} {version}" for name, version in result["versions"].items()]
    peers = [
        f"{package} {version}"
        for found in result.get("peer_versions", {}).values()
        for package, version in found.items()
        if package != "onnxruntime"
    ]
    return ", ".join([*ours, *peers])


def _median(values: Any) -> float:
    return float(statistics.median(values))


def _median_or_none(values: Any) -> float | None:
    found = [value for value in values if value is not None]
    return _median(found) if found else None


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
