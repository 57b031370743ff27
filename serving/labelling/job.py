"""The job: check, plan, do the shards that are this process's, and finish when all are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.bundle import read_bundle
from serving.labelled import count_clusters, label_chunk, open_for_model
from serving.labelling.budget import ErrorBudget
from serving.labelling.engines import Labeller, open_labeller
from serving.labelling.failures import LabellingError
from serving.labelling.plan import Plan, Shard, make_plan, read_plan, refuse_changes, write_plan
from serving.labelling.settings import LabelSettings
from serving.labelling.shards import (
    SIDECAR_FOLDER,
    SUCCESS_FILE,
    Sidecar,
    Success,
    clean_shard,
    finished,
    write_shard,
    write_success,
)
from serving.progress import Progress
from serving.readers import Source
from serving.readers.fingerprint import stat_fingerprint


@dataclass(frozen=True)
class Outcome:
    """What a process did.

    Attributes
    ----------
    rows, shards
        Done by this process, now.
    skipped_shards
        Of this process, done before.
    rate
        Rows per second.
    success
        The whole job's result, or ``None`` while shards of other processes are missing.
    """

    rows: int
    shards: int
    skipped_shards: int
    rate: float
    success: Success | None


def run_job(settings: LabelSettings, check_stop: Callable[[], None] = lambda: None) -> Outcome:
    """Do this process's share of the job.

    Nothing is written before model, input and output folder are known to fit.

    Parameters
    ----------
    settings
        What to do.
    check_stop
        Called between chunks; raises to stop.

    Raises
    ------
    LabellingError, DataError, BundleError
        If it cannot be done as asked, now or later.
    ClusterServiceError, EngineError, OSError
        If the server, the model or the disk fails.
    """
    bundle = read_bundle(settings.model)
    source = open_for_model(
        settings.input,
        bundle.manifest.input,
        str(bundle.path),
        novelty=bundle.manifest.novelty is not None,
        split=settings.split,
        label_column=settings.label_column,
        id_columns=settings.id_columns,
        feature_columns=settings.feature_columns,
        resize=settings.resize,
    )
    _ = source.stat_fingerprint  # as it is now, before it is read
    plan, is_new = _settle_plan(settings, make_plan(settings, source, bundle.manifest))
    with open_labeller(settings, bundle) as labeller:
        check_stop()
        settings.output.mkdir(parents=True, exist_ok=True)
        if is_new:
            write_plan(settings.output, plan)
            if read_plan(settings.output) != plan:
                raise LabellingError(
                    f"{settings.output}: another job was begun here; label into a new folder"
                )
        (settings.output / SIDECAR_FOLDER).mkdir(exist_ok=True)
        return _do_shards(settings, plan, source, labeller, bundle.manifest.n_clusters, check_stop)


def _settle_plan(settings: LabelSettings, wanted: Plan) -> tuple[Plan, bool]:
    """Take the plan to follow, and tell whether it is still to be written."""
    output = settings.output
    found = read_plan(output)
    if found is None and _has_content(output):
        found = read_plan(output)  # another process may have written it just now
        if found is None:
            raise LabellingError(f"{output}: not empty, and not a labelling output; choose another folder")
    if found is None:
        return wanted, True
    refuse_changes(output, found, wanted, rows_per_shard_given=settings.rows_per_shard is not None)
    if not settings.resume:
        mine = [shard for shard in found.shards if _is_mine(settings, shard)]
        begun = any(finished(output, found, shard, verify=False) for shard in mine)
        # The first of several processes has written the plan for the others.
        if settings.shard_count == 1 or begun:
            raise LabellingError(
                f"{output}: holds the output of an earlier run; pass --resume to go on with it, or choose "
                "another folder"
            )
    return found, False


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _is_mine(settings: LabelSettings, shard: Shard) -> bool:
    return shard.index % settings.shard_count == settings.shard_index


def _do_shards(
    settings: LabelSettings,
    plan: Plan,
    source: Source,
    labeller: Labeller,
    n_clusters: int,
    check_stop: Callable[[], None],
) -> Outcome:
    mine = [shard for shard in plan.shards if _is_mine(settings, shard)]
    done: dict[int, Sidecar] = {}
    for shard in mine:
        clean_shard(settings.output, shard)
        if sidecar := finished(settings.output, plan, shard, verify=True):
            done[shard.index] = sidecar
    todo = [shard for shard in mine if shard.index not in done]
    if todo:
        (settings.output / SUCCESS_FILE).unlink(missing_ok=True)  # a part that was damaged since
    spent = sum(sidecar.errors for sidecar in done.values())
    budget = ErrorBudget(settings.input, settings.max_error_share, plan.input.n_rows, spent)
    n_done = sum(sidecar.rows for sidecar in done.values())
    with Progress(sum(shard.n_rows for shard in mine), n_done) as progress:
        progress.say(
            f"{len(todo)} of {len(plan.shards)} shards to do, {len(done)} of this process done before, "
            f"by {labeller.name}"
        )
        for shard in todo:
            tables, counts = [], np.zeros(n_clusters, np.int64)
            for chunk in source.chunks(shard.start, shard.stop, settings.chunk_rows):
                check_stop()
                table = label_chunk(chunk, labeller.assign, labeller.has_novelty)
                budget.spend(table)
                tables.append(table)
                counts += count_clusters(table, n_clusters)
                progress.add(len(chunk))
            _refuse_changed_meanwhile(source)
            write_shard(settings.output, plan, shard, pa.concat_tables(tables), counts.tolist())
        return Outcome(
            rows=sum(shard.n_rows for shard in todo),
            shards=len(todo),
            skipped_shards=len(done),
            rate=progress.rate,
            success=_finish(settings.output, plan, budget),
        )


def _refuse_changed_meanwhile(source: Source) -> None:
    if stat_fingerprint(source.path, source.files) != source.stat_fingerprint:
        raise LabellingError(
            f"{source.path}: changed while it was being labelled; label it into a new folder"
        )


def _finish(output: Path, plan: Plan, budget: ErrorBudget) -> Success | None:
    # Each process looks after writing its last sidecar, so the last one to do so sees them all. Two that
    # see them all at once write the same bytes.
    sidecars = [finished(output, plan, shard, verify=False) for shard in plan.shards]
    present = [sidecar for sidecar in sidecars if sidecar is not None]
    if len(present) < len(sidecars):
        return None
    budget.settle(sum(sidecar.errors for sidecar in present))
    return write_success(output, plan, present)
