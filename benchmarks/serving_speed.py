"""How fast the server is: beside its floors, beside fifty naive lines, and beside other people's servers.

``make bench-serving`` prints the tables, writes ``benchmarks/results/serving.json`` and puts the tables
into README.md (``benchmarks/tables.py``). All systems serve the same ONNX file, an MLP
784-500-500-10 on uint8 images of 28 x 28, on all processors of this machine, which the load generator, a
process of its own, has to share. Each round starts each system anew, puts the same load on it
(`serving_peers.cases`) and ends it; figures are medians over the rounds, ratios are taken within a round.
Every answer but the echo's is compared with the engine's.

The load generator takes a share of the processors, and so does gRPC. What a perfect server could give is
therefore 1 / (1 / loop + 1 / echo) rows a second: the model's time and the transport's, one after the
other, each as measured alone on all processors, the second by an empty echo that gets the same requests
from the same load generator.

Peers get an environment each under ``--environments``, made on demand from ``serving_peers/requirements``.
What cannot be installed or started is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serving_peers import h2load
from serving_peers.cases import standard
from serving_peers.endurance import overloaded, remembers
from serving_peers.environments import InstallError, packages_megabytes, prepare, versions
from serving_peers.model import NAME, ask, link_bundle, make_bundle
from serving_peers.session import Places, StartError, put_load, started
from serving_peers.systems import BASE_ENVIRONMENT, SERVERS, SYSTEMS, System
from tables import serving

from serving.bundle import read_bundle

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving.json"
# Rows a call and calls in flight at the peak. Of fewer rows the load generator cannot send twice the peak.
OVERLOADS = ((64, 16), (256, 8))


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        places = arrange(Path(name), options)
        result = json.loads(options.results.read_text()) if options.append else {}
        described = describe(places, options)
        if result and (differing := {key for key in described if result.get(key) != described[key]}):
            sys.exit(f"--append: {options.results} has another {', '.join(sorted(differing))}; leave it away")
        result |= described
        result.setdefault("commands", []).append(
            " ".join(["serving_speed.py", *_without_paths(sys.argv[1:])])
        )
        systems = [SYSTEMS[name] for name in options.systems]
        ready = install(systems, options, result)
        if ready and options.rounds:
            measure(ready, places, options, result)
        if options.overload_seconds:
            for rows, in_flight in OVERLOADS:
                print(f"overload, {rows} rows a call", file=sys.stderr, flush=True)
                result.setdefault("overload", []).append(
                    overloaded(
                        SYSTEMS["nvisa"], SYSTEMS["echo"], places, rows, in_flight, options.overload_seconds
                    )
                )
        if options.memory_seconds:
            print("memory", file=sys.stderr, flush=True)
            result["memory"] = remembers(SYSTEMS["nvisa"], places, options.memory_seconds)
    save(result, options)
    print(serving(result) if result.get("rounds") else json.dumps(result, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS), metavar="NAME", help=_names())
    add("--rounds", type=int, default=3, help="turns of each system; 0: none (default 3)")
    add("--seconds", type=float, default=2.0, help="length of each case (default 2)")
    add("--overload-seconds", type=int, default=4, help="length of the peak before it is doubled; 0: none")
    add(
        "--memory-seconds",
        type=float,
        default=0.0,
        help="length of the memory run; 600 in the README; 0: none",
    )
    add("--bundle", type=Path, help="a bundle named mnist/1, of uint8 28 x 28; made, and kept, without")
    add("--server", type=Path, default=Path(sys.executable).parent / "nvisa-serve", help="our server")
    add("--environments", type=Path, default=HERE.parent / ".venv-peers", help="where peers are installed")
    add("--peer-python", type=Path, help="interpreter for the peers' environments; default: one that fits")
    add("--note", default="", help="kept with the results, such as the commit of --server")
    add("--results", type=Path, default=RESULTS, help="file to write")
    add("--append", action="store_true", help="add to the results there, if of this machine and versions")
    options = parser.parse_args()
    options.server = options.server.absolute()
    options.environments = options.environments.absolute()
    if options.overload_seconds == 1:
        parser.error("--overload-seconds: 1 is too short; pass 0 or at least 2")
    if not options.server.exists():
        parser.error(f"--server {options.server} is not there")
    return options


def _names() -> str:
    return "which; all without:\n" + "\n".join(f"  {name}: {each.title}" for name, each in SYSTEMS.items())


def arrange(folder: Path, options: argparse.Namespace) -> Places:
    """The model and the rows, in place for all systems."""
    kept = options.environments / "models"
    if options.bundle is None and not (kept / NAME / "1").exists():
        print("fitting a small model", file=sys.stderr, flush=True)
        make_bundle(kept)
    bundle = link_bundle(options.bundle or kept / NAME / "1", folder / "models")
    rows = ask(read_bundle(bundle)).save(folder / "rows.npz")
    return Places(folder / "models", rows, options.environments, options.server)


def describe(places: Places, options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers are of."""
    manifest = read_bundle(places.repository / NAME / "1").manifest
    ours = ("nvisa", "grpcio", "onnxruntime", "numpy")
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ours},
        "model": {"graph_sha256": manifest.graph_sha256, "created": manifest.created},
        "note": options.note,
    }


def _without_paths(arguments: list[str]) -> list[str]:
    return [Path(part).name if os.sep in part else part for part in arguments]


def install(systems: list[System], options: argparse.Namespace, result: dict[str, Any]) -> list[System]:
    """Those of ``systems`` that can be started; why others cannot goes into ``result``."""
    ready, missing = [], result.setdefault("unavailable", {})
    for system in systems:
        missing.pop(system.name, None)
        try:
            prepare(system, options.environments, options.peer_python)
            megabytes = packages_megabytes(system, options.environments)
        except InstallError as error:
            missing[system.name] = _in_short(error)
            print(f"{system.title}: {error}", file=sys.stderr, flush=True)
            continue
        if system.package is not None:
            result.setdefault("peer_versions", {})[system.name] = versions(system)
        if megabytes is not None:
            result.setdefault("packages_megabytes", {})[system.name] = round(megabytes)
        ready.append(system)
    return ready


def measure(
    systems: list[System], places: Places, options: argparse.Namespace, result: dict[str, Any]
) -> None:
    """All rounds."""
    rounds = result.setdefault("rounds", [])
    for _ in range(options.rounds):
        turns: dict[str, Any] = {"loop": loop(places, options.seconds)}
        # Every round in another order: on a shared processor it matters who comes after whom.
        for system in random.Random(len(rounds)).sample(systems, len(systems)):
            print(f"round {len(rounds) + 1}: {system.title}", file=sys.stderr, flush=True)
            try:
                turns[system.name] = turn(system, places, options.seconds)
            except StartError as error:
                if system.package is None:
                    raise
                result["unavailable"][system.name] = _in_short(error)
                print(error, file=sys.stderr, flush=True)
                systems.remove(system)
        rounds.append(turns)
        save(result, options)


def save(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the results; after each round, so that a later failure does not lose it."""
    options.results.write_text(json.dumps(result, indent=1) + "\n")


def _in_short(error: Exception) -> str:
    """One line for README, without the folder of this checkout."""
    line = " ".join(str(error).replace(str(HERE.parent), "").split())
    return line if len(line) < 400 else f"{line[:200]} … {line[-200:]}"


def turn(system: System, places: Places, seconds: float) -> dict[str, Any]:
    """Start it, measure it, end it."""
    with started(system, places) as it:
        cases, memory = put_load(it, places, standard(seconds))
        failed = {}
        if system.wire != "http":
            try:
                cases += h2load.run(it, places, 64, seconds)
            except h2load.CallsFailedError as error:
                failed = {"h2load_failed": _in_short(error)}
                print(f"{system.title}: {error}", file=sys.stderr, flush=True)
        return failed | {
            "start_seconds": round(it.seconds, 2),
            "idle_megabytes": round(it.idle_megabytes, 1),
            "peak_megabytes": round(max(megabytes for _, megabytes in memory), 1),
            "cases": {case.pop("case"): case for case in cases},
        }


def loop(places: Places, seconds: float) -> dict[str, Any]:
    """The model alone; see ``serving_peers/servers/loop.py``."""
    graph = places.repository / NAME / "1" / "model.onnx"
    done = subprocess.run(
        [sys.executable, str(SERVERS / "loop.py"), str(graph), str(places.rows), str(seconds)],
        env=os.environ | BASE_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return max(found["ways"], key=lambda way: way["rows_per_second"]) | {
        "single_row_ms": found["single_row_ms"]
    }


if __name__ == "__main__":
    main()
