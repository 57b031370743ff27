"""``nvisa-train``: fit, evaluate, export, report."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.configuration import load_settings
from training import ranks

USAGE = """usage: nvisa-train COMMAND ...

Deep generative clustering: fit NVISA to unlabelled data and export its assigner.

commands:
  fit       fit to data and keep the run in a directory
  evaluate  score a run on labelled data
  export    write a run's assigner as a bundle for nvisa-serve and nvisa-label
  report    draw a run's clusters

nvisa-train COMMAND --help tells a command's options."""


def fit(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train fit``."""
    with ranks.joined() as world:
        _fit(arguments, world)


def _fit(arguments: Sequence[str], world: ranks.World) -> None:
    from training import data
    from training.config import TrainingConfig
    from training.fit import Silent
    from training.fit import fit as run_fit
    from training.progress import TerminalProgress
    from training.settings import FitSettings

    def read() -> tuple[Any, TrainingConfig, data.Data]:
        settings = load_settings(FitSettings, arguments)
        config = settings.training_config()
        return settings, config, data.load(settings.data, label_column=settings.label_column)

    settings, config, loaded = world.together(read)
    progress = TerminalProgress() if world.rank == 0 else Silent()
    progress.say(f"{settings.data}: {len(loaded.x)} rows of {loaded.spec.dtype} {loaded.spec.shape}")
    progress.say(f"settings: {config.model_dump_json()}")
    try:
        fitted = run_fit(
            config,
            loaded.x,
            loaded.spec,
            name=loaded.name,
            fingerprint=loaded.fingerprint,
            directory=settings.output,
            resume=settings.resume,
            progress=progress,
            world=world,
        )
    finally:
        if isinstance(progress, TerminalProgress):
            progress.close()
    if world.rank > 0:
        return
    fitted.save(settings.output)
    for index, restart in enumerate(fitted.restarts):
        chosen = "  <- chosen" if index == fitted.chosen and config.restarts > 1 else ""
        outcome = restart.error or f"warm bound {restart.score:.3f} nats"
        print(f"seed {restart.seed}: {outcome}, {restart.seconds:.0f} s{chosen}")
    print(f"run written to {settings.output}")


def evaluate(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train evaluate``."""
    from training import data
    from training.fitted import Fitted
    from training.inference import probabilities
    from training.precision import resolve_device
    from training.run import check_rows
    from training.scores import score
    from training.settings import EvaluateSettings

    settings = load_settings(EvaluateSettings, arguments)
    fitted = Fitted.load(settings.run, resolve_device(settings.device))
    loaded = data.load(settings.data, split=settings.split, label_column=settings.label_column, labels=True)
    check_rows(fitted.spec, loaded.spec, settings.data)
    q = probabilities(fitted.model, loaded.x)
    n_clusters = fitted.config.n_clusters
    scores = score(q.argmax(1), n_clusters, labels=loaded.labels, confidences=q.max(1))
    start = None
    if fitted.start is not None:
        start = score(fitted.start.predict(fitted.model, loaded.x), n_clusters, labels=loaded.labels)
    if settings.json:
        # The start's scores go under a key of their own, beside the model's.
        document = scores.model_dump(mode="json")
        document["start"] = start.model_dump(mode="json") if start is not None else None
        print(json.dumps(document, indent=2))
        return
    print(scores)
    if start is not None and start.acc is not None:
        print(
            f"\nAE+GMM, the start of this run: ACC {start.acc:.4f}, NMI {start.nmi:.4f}, ARI {start.ari:.4f}"
        )


def export(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train export``."""
    from training.export import export as write
    from training.fitted import Fitted
    from training.settings import ExportSettings

    settings = load_settings(ExportSettings, arguments)
    manifest = write(Fitted.load(settings.run), settings.output)
    parity = manifest.parity
    print(
        f"{settings.output}: {manifest.n_clusters} clusters, parity on {parity.rows} rows: "
        f"largest difference {parity.max_abs_difference:.2g}, "
        f"equal argmax {100 * parity.equal_argmax_share:.2f} %"
    )


def report(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train report``."""
    from training.draw import draw
    from training.fitted import Fitted
    from training.settings import ReportSettings

    settings = load_settings(ReportSettings, arguments)
    page = draw(Fitted.load(settings.run), settings.output or settings.run / "report")
    print(f"report written to {page}")


DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "fit": fit,
    "evaluate": evaluate,
    "export": export,
    "report": report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``nvisa-train``; returns the exit status.

    0 done, 1 the run failed, 2 the arguments, the data or a file cannot be used, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(USAGE)
        return 0 if arguments else 2
    rank = ranks.own_rank()
    name = f"rank {rank}: nvisa-train" if rank else "nvisa-train"
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"nvisa-train: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command(arguments[1:])
    except (ValueError, OSError) as error:
        full = command is fit and isinstance(error, OSError) and error.errno in DISK_FULL
        hint = "; make room and go on with --resume" if full else ""
        print(f"{name} {arguments[0]}: {_message(error)}{hint}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{name}: {error}; install nvisa[training,cpu]", file=sys.stderr)
        return 2
    except (ArithmeticError, ranks.RankError) as error:
        print(f"{name} {arguments[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; go on with --resume" if command is fit else ""
        if rank == 0:
            print(f"\nnvisa-train {arguments[0]}: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {Path(str(error.filename)) if error.filename else ''}".rstrip(": ")
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
