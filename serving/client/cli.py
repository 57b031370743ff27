"""``nvisa-client``: ask a running server from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc

from serving.client.messages import Health
from serving.client.security import Security
from serving.client.status import ClusterServiceError
from serving.client.sync import ClusterClient

_FIRST_ROWS = 10
_POLL_SECONDS = 0.1
_HEALTH_SECONDS = 5.0
# What a server that is still starting, or busy loading, may answer.
_NOT_YET = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed or not ready, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        with ClusterClient(options.target, security=_security(options)) as client:
            status = int(options.run(client, options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough; the interpreter would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ClusterServiceError, ValueError, OSError) as error:  # DataError is a ValueError
        print(f"nvisa-client: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nvisa-client", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="{assign,models,health}")
    assign = _command(commands, "assign", _assign, "assign the rows of a file to clusters")
    assign.add_argument("--model", required=True, help="name of the model")
    assign.add_argument(
        "--version",
        type=_version,
        help="its version, or a label such as canary; by default the server's choice",
    )
    assign.add_argument("--input", required=True, type=Path, help="IDX, NPY, NPZ, Parquet, CSV, or a folder")
    assign.add_argument("--output", type=Path, help="write .parquet, .csv or .npy instead of showing rows")
    assign.add_argument("--split", choices=("train", "test"), default="train", help="of a folder with both")
    assign.add_argument("--label-column", help="column to keep out of the features")
    assign.add_argument("--id-columns", type=_names, default=(), help="a,b: columns to hand through")
    assign.add_argument("--feature-columns", type=_names, default=(), help="a,b: columns that make up a row")
    assign.add_argument(
        "--resize", action="store_true", help="bring images of other sizes to the model's, bilinearly"
    )
    _command(commands, "models", _models, "list the models on the server")
    health = _command(
        commands, "health", _health, "tell whether the server is alive and ready; exit status 1 if not ready"
    )
    health.add_argument("--wait", type=_seconds, metavar="SECONDS", help="wait so long for it to be ready")
    return parser


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    command.add_argument("--target", default="localhost:8001", help="server, host:port (%(default)s)")
    command.add_argument("--timeout", type=_seconds, default=60.0, help="seconds per call (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--tls", action="store_true", help="use TLS, trusting the authorities that gRPC does"
    )
    command.add_argument("--ca", type=Path, help="use TLS, trusting the authorities in this PEM file instead")
    command.add_argument("--cert", type=Path, help="PEM file: this client's certificate, for mutual TLS")
    command.add_argument("--key", type=Path, help="PEM file: its private key")
    command.add_argument("--token-file", type=Path, help="file with the token that the server asks for")
    command.add_argument(
        "--allow-insecure-token",
        action="store_true",
        help="send the token in plaintext to another machine, too",
    )
    return command


def _security(options: argparse.Namespace) -> Security:
    return Security(
        tls=options.tls,
        ca=options.ca,
        cert=options.cert,
        key=options.key,
        token_file=options.token_file,
        allow_insecure_token=options.allow_insecure_token,
    )


def _version(text: str) -> int | str:
    if text[:1].isalpha():
        return text
    if not text.isdecimal() or not 1 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number, and no label")
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _assign(client: ClusterClient, options: argparse.Namespace) -> int:
    try:
        from serving.client.assign_file import assign_file, refuse_output, write_table
    except ImportError as error:
        raise ValueError(f"reading files needs pyarrow and pillow; install nvisa[data] ({error})") from error
    if options.output is not None:
        refuse_output(options.output)
    done = assign_file(
        client,
        options.input,
        model=options.model,
        version=options.version,
        timeout=options.timeout,
        split=options.split,
        label_column=options.label_column,
        id_columns=options.id_columns,
        feature_columns=options.feature_columns,
        resize=options.resize,
    )
    if options.output is not None:
        write_table(done.table, options.output)
    counts, n_rows, mean = done.counts, len(done.table), done.mean_confidence
    if options.json:
        _print_json(
            {
                "model": done.model,
                "version": done.version,
                "rows": n_rows,
                "errors": done.n_errors,
                "counts": counts.tolist(),
                "mean_confidence": mean,
                "mean_novelty": done.mean_novelty,
                "output": str(options.output) if options.output else None,
            }
        )
        return 0
    if options.output is None:
        rows = done.table.slice(0, _FIRST_ROWS)
        _print_table(rows.column_names, ([_shown(v) for v in row.values()] for row in rows.to_pylist()))
        print(f"first {len(rows)} of {n_rows} rows; all of them with --output FILE\n")
    shares = counts / max(1, counts.sum())
    _print_table(
        ["cluster", "name", "rows", "share"],
        ([str(k), done.cluster_names[k], f"{counts[k]:,}", f"{shares[k]:.1%}"] for k in range(len(counts))),
    )
    means = "" if mean is None else f", mean confidence {mean:.4f}"
    if done.mean_novelty is not None:
        means += f", mean novelty {done.mean_novelty:.4f} (0.5 if like the training data)"
    print(f"{n_rows:,} rows by {done.model} version {done.version}{means}, {done.n_errors:,} unreadable")
    if options.output is not None:
        print(f"written to {options.output}")
    return 0


def _models(client: ClusterClient, options: argparse.Namespace) -> int:
    models = client.models(timeout=options.timeout)
    if options.json:
        _print_json([dataclasses.asdict(model) for model in models])
        return 0
    _print_table(
        ["name", "version", "default", "labels", "state", "device", "input", "clusters", "created"],
        (
            [
                model.name,
                str(model.version),
                "yes" if model.is_default else "",
                ", ".join(model.labels),
                model.state + (f" ({model.state_reason})" if model.state_reason else ""),
                model.device,
                f"{model.dtype} {list(model.shape)}",
                str(model.n_clusters),
                model.created,
            ]
            for model in models
        ),
    )
    return 0


def _health(client: ClusterClient, options: argparse.Namespace) -> int:
    health = _wait_ready(client, options.wait or 0.0, min(options.timeout, _HEALTH_SECONDS))
    if options.json:
        _print_json(dataclasses.asdict(health))
    else:
        print(f"alive: {'yes' if health.alive else 'no'}\nready: {'yes' if health.ready else 'no'}")
    return 0 if health.ready else 1


def _wait_ready(client: ClusterClient, seconds: float, timeout: float) -> Health:
    """Ask for the server's health until it is ready or ``seconds`` have passed; at least once.

    A server that cannot be reached may be starting still: only the last failure to reach it is raised.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            health = client.health(timeout=min(timeout, left) if left > 0 else timeout)
            if health.ready or left <= 0:
                return health
        except ClusterServiceError as error:
            if left <= 0 or error.code not in _NOT_YET:
                raise
        time.sleep(min(_POLL_SECONDS, max(left, 0.0)))


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
