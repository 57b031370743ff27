"""The directory of a run: opened by a fit, refused where it would lose or mix anything."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from serving.files import sync_directory
from serving.manifest import InputSpec
from training.checkpoint import CheckpointError, read_json, write_json
from training.config import TrainingConfig
from training.fitted import Fitted

RUN_FILE = "run.json"


def open_run(
    directory: Path,
    config: TrainingConfig,
    fingerprint: str,
    spec: InputSpec,
    *,
    resume: bool,
    warm_start: str | None = None,
) -> None:
    """Make ``directory`` ready for a fit, and record what it is a fit of.

    ``warm_start`` is the digest of the weights it begins with, if they are another run's.

    Raises
    ------
    CheckpointError
        If the directory holds a run already and ``resume`` is not set, or ``resume`` is set and the run
        is of other data, columns, hyper-parameters or first weights, or there is none.
    """
    path = directory / RUN_FILE
    if resume:
        if not path.exists():
            raise CheckpointError(f"{directory} holds no run to resume: leave --resume away to begin one")
        known = read_json(path)
        if known["fingerprint"] != fingerprint:
            raise CheckpointError(f"{directory} is a run on other data: fit into another directory")
        begun_on = InputSpec.model_validate(known["input"]) if "input" in known else spec
        if difference := begun_on.difference(spec):
            raise CheckpointError(
                f"{directory} was begun on other rows of the same data, which are now {difference}: name its "
                "columns or --resize its images as then, or fit into another directory"
            )
        if (known["digest"], known["seed"]) != (config.digest(), config.seed):
            raise CheckpointError(
                f"{directory} was begun with other hyper-parameters: resume with those in {path}, "
                "or fit into another directory"
            )
        if (begun := known.get("warm_start")) != warm_start:
            why = (
                f"{directory} was begun without a warm start: leave --warm-start away"
                if begun is None
                else f"{directory} was begun from another run's weights: resume with the --warm-start it had"
            )
            raise CheckpointError(f"{why}, or fit into another directory")
    else:
        refuse_used(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "fingerprint": fingerprint,
            "input": spec.model_dump(mode="json"),
            "digest": config.digest(),
            "seed": config.seed,
            "warm_start": warm_start,
            "config": config.model_dump(mode="json"),
            "versions": {name: version(name) for name in ("nvisa", "torch", "numpy", "scikit-learn")},
        },
    )


def refuse_used(directory: Path) -> None:
    """Refuse to begin a run where there is something already.

    Raises
    ------
    CheckpointError
        If ``directory`` is not empty, or no directory.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(
            f"{directory} exists already: pass --resume to go on with it, or another --output"
        )


def write_run(fitted: Fitted, directory: Path, more: Callable[[Path], None]) -> None:
    """Write a fitted model as a new run: all of ``directory`` at once, or nothing.

    Parameters
    ----------
    more
        Writes what else belongs into the directory, given its path while it is being filled.

    Raises
    ------
    CheckpointError
        If the directory is there already.
    """
    refuse_existing(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=directory.parent))
    try:
        staging.chmod(0o755)
        fitted.save(staging)
        more(staging)
        sync_directory(staging)
        os.rename(staging, directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_existing(directory: Path) -> None:
    """Raise `CheckpointError` if ``directory`` is there already: no run is ever overwritten."""
    if directory.exists():
        raise CheckpointError(f"{directory} exists already: pass another --output")


def check_rows(expected: InputSpec, found: InputSpec, source: str) -> None:
    """Refuse data whose rows are not what a model was fitted on.

    Raises
    ------
    ValueError
        If dtype or shape differ, or columns that both know.
    """
    if difference := expected.difference(found):
        raise ValueError(f"{source}: its rows are not the model's: {difference}")
