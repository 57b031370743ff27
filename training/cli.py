"""``nvisa-train``: fit, evaluate, export, report."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from training import commands, ranks

USAGE = """usage: nvisa-train COMMAND ...

Deep generative clustering: fit NVISA to unlabelled data and export its assigner.

commands:
  fit       fit to data and keep the run in a directory
  evaluate  score a run on labelled data
  export    write a run's assigner as a bundle for nvisa-serve and nvisa-label
  report    draw a run's clusters
  align     number and name a run's clusters like those of an older bundle
  suggest-k measure how many clusters there may be
  features  compute features of images with a pretrained backbone, to fit to
  paper     make the paper's tables and figures

nvisa-train COMMAND --help tells a command's options."""


def _paper(arguments: Sequence[str]) -> None:
    from training.paper.command import paper

    paper(arguments)


DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "fit": commands.fit,
    "evaluate": commands.evaluate,
    "export": commands.export,
    "report": commands.report,
    "align": commands.align,
    "suggest-k": commands.suggest_k,
    "features": commands.features,
    "paper": _paper,
}
_RESUME = "go on with --resume"
_GOING_ON: dict[Callable[[Sequence[str]], None], str] = {
    commands.fit: _RESUME,
    commands.features: _RESUME,
    _paper: "the same command goes on",
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
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        hint = f"; make room and {_GOING_ON[command]}" if full and command in _GOING_ON else ""
        print(f"{name} {arguments[0]}: {_message(error)}{hint}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{name}: {error}; install nvisa[training,cpu]", file=sys.stderr)
        return 2
    except MemoryError as error:
        hint = "; rows need not be in memory: --memory mapped" if command is commands.fit else ""
        print(f"{name} {arguments[0]}: out of memory: {error}{hint}", file=sys.stderr)
        return 1
    except (ArithmeticError, ranks.RankError) as error:
        print(f"{name} {arguments[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = f"; {_GOING_ON[command]}" if command in _GOING_ON else ""
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
