"""What each command of ``nvisa-train`` does; imports are within, so that ``--help`` needs none of them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.configuration import load_settings
from serving.manifest import InputSpec
from training import ranks


def fit(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train fit``."""
    with ranks.joined() as world:
        _fit(arguments, world)


def _fit(arguments: Sequence[str], world: ranks.World) -> None:
    from training import data
    from training.allocator import keep_freed_memory
    from training.config import TrainingConfig
    from training.fit import Silent
    from training.fit import fit as run_fit
    from training.fitted import Fitted
    from training.origin import check_same
    from training.progress import TerminalProgress
    from training.run import refuse_used
    from training.settings import FitSettings

    progress = TerminalProgress() if world.rank == 0 else Silent()

    def read() -> tuple[Any, TrainingConfig, Fitted | None, data.Data]:
        settings = load_settings(FitSettings, arguments)
        keep_freed_memory()
        config = settings.training_config()
        if not settings.resume:
            refuse_used(settings.output)  # reading large data first would only delay it
        old = Fitted.load(settings.warm_start) if settings.warm_start is not None else None
        loaded = data.load(
            settings.data,
            **settings.columns(),
            memory=config.memory,
            scratch=settings.scratch or _disk_of(settings.output),
            **_sized(settings.resize, old.spec if old is not None else None),
            say=progress.say,
        )
        if old is not None:
            check_same(old.origin, loaded.origin, settings.data)
        return settings, config, old, loaded

    try:
        settings, config, old, loaded = world.together(read)
        progress.say(f"{settings.data}: {len(loaded.x)} rows of {loaded.spec.dtype} {loaded.spec.shape}")
        progress.say(f"settings: {config.model_dump_json()}")
        fitted = run_fit(
            config,
            loaded.x,
            loaded.spec,
            name=loaded.name,
            fingerprint=loaded.fingerprint,
            directory=settings.output,
            resume=settings.resume,
            warm_start=old,
            progress=progress,
            world=world,
        )
    finally:
        if isinstance(progress, TerminalProgress):
            progress.close()
    if world.rank > 0:
        return
    fitted = dataclasses.replace(fitted, origin=loaded.origin)
    fitted.save(settings.output)
    for index, restart in enumerate(fitted.restarts):
        chosen = "  <- chosen" if index == fitted.chosen and config.restarts > 1 else ""
        agreement = "" if restart.agreement is None else f"agrees {restart.agreement:.3f} with the others, "
        outcome = restart.error or f"{agreement}warm bound {restart.score:.3f} nats"
        print(f"seed {restart.seed}: {outcome}, {restart.seconds:.0f} s{chosen}")
    print(f"run written to {settings.output}")


def evaluate(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train evaluate``."""
    from training import data
    from training.evaluation import evaluate as score_run
    from training.fitted import Fitted
    from training.precision import resolve_device
    from training.settings import EvaluateSettings

    settings = load_settings(EvaluateSettings, arguments)
    fitted = Fitted.load(settings.run, resolve_device(settings.device))
    source = data.open_data(
        settings.data,
        split=settings.split,
        labels=True,
        expected=fitted.spec,
        resize=settings.resize,
        **settings.columns(),
    )
    scores, start = score_run(fitted, source)
    if settings.json:
        # The start's scores go under a key of their own, beside the model's.
        document = scores.model_dump(mode="json")
        document["start"] = start.model_dump(mode="json") if start is not None else None
        print(json.dumps(document, indent=2))
        return
    print(scores)
    if not source.has_labels:
        print(
            "\nno labels there, so no ACC, NMI or ARI; of a Parquet or CSV file name them with "
            "--label-column; of images in a folder a class, with --label-column folder"
        )
    if start is not None and start.acc is not None:
        print(
            f"\n{fitted.start_name}, the start of this run, as its nets had learned it: "
            f"ACC {start.acc:.4f}, NMI {start.nmi:.4f}, ARI {start.ari:.4f}"
        )


def export(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train export``."""
    from training.export import export as write
    from training.fitted import Fitted
    from training.settings import ExportSettings

    settings = load_settings(ExportSettings, arguments)
    manifest = write(
        Fitted.load(settings.run),
        settings.output,
        with_novelty=settings.with_novelty,
        backbone=settings.backbone,
        half=settings.half,
    )
    parity = manifest.parity
    print(
        f"{settings.output}: {manifest.n_clusters} clusters, parity on {parity.rows} rows: "
        f"largest difference {parity.max_abs_difference:.2g}, "
        f"equal argmax {100 * parity.equal_argmax_share:.2f} %"
    )
    if (novelty := manifest.novelty) is not None:
        print(
            f"novelty: a rank among {novelty.rows:,} training rows, parity {novelty.max_abs_difference:.2g}; "
            f"a row costs {novelty.cost_ratio:.2f} times the multiply-accumulates of the clusters alone"
        )


def report(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train report``."""
    from training.draw import draw
    from training.fitted import Fitted
    from training.settings import ReportSettings

    settings = load_settings(ReportSettings, arguments)
    page = draw(Fitted.load(settings.run), settings.output or settings.run / "report")
    print(f"report written to {page}")


def align(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train align``."""
    from serving.bundle import read_bundle
    from training import data
    from training.align import align as match_clusters
    from training.align import write_aligned
    from training.fitted import Fitted
    from training.origin import check_same
    from training.precision import resolve_device
    from training.run import check_rows, refuse_existing
    from training.settings import AlignSettings

    settings = load_settings(AlignSettings, arguments)
    if settings.output is not None:
        refuse_existing(settings.output)
    bundle = read_bundle(settings.old_bundle)
    fitted = Fitted.load(settings.new_run, resolve_device(settings.device))
    check_rows(bundle.manifest.input, fitted.spec, str(settings.new_run))
    expected = fitted.spec if fitted.spec.columns else bundle.manifest.input
    loaded = data.load(
        settings.data, split=settings.split, expected=expected, resize=settings.resize, **settings.columns()
    )
    check_rows(bundle.manifest.input, loaded.spec, settings.data)
    check_same(fitted.origin, loaded.origin, settings.data)
    aligned, alignment = match_clusters(fitted, bundle, loaded.x)
    print(alignment.model_dump_json(indent=2) if settings.json else alignment)
    if settings.output is not None:
        write_aligned(aligned, alignment, settings.output, allow_fewer=settings.allow_fewer)
        if not settings.json:
            print(f"aligned run written to {settings.output}")


def suggest_k(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train suggest-k``."""
    from training import data
    from training.count import count_clusters
    from training.progress import TerminalProgress
    from training.settings import SuggestKSettings

    settings = load_settings(SuggestKSettings, arguments)
    _refuse_file(settings.output)
    loaded = data.load(
        settings.data,
        split=settings.split,
        **_sized(settings.resize),
        **settings.columns(),
    )
    first, last = getattr(settings, "from"), settings.to
    count = count_clusters(
        loaded,
        range(first, last + 1),
        rows=settings.rows,
        n_neighbors=settings.n_neighbors,
        embedding_metric=settings.embedding_metric,
        starts=settings.gmm_starts,
        repeats=settings.repeats,
        seed=settings.seed,
        say=TerminalProgress().say,
    )
    count.write(settings.output)
    if settings.json:
        print(count.model_dump_json(indent=2))
        return
    print(count)
    print(f"picture and numbers written to {settings.output}")


def features(arguments: Sequence[str]) -> None:
    """Run ``nvisa-train features``."""
    from training import data
    from training.backbone import read_backbone
    from training.features import compute
    from training.recipe import Asked
    from training.settings import FeaturesSettings

    settings = load_settings(FeaturesSettings, arguments)
    source = data.open_data(
        settings.images,
        split=settings.split,
        label_column=settings.label_column,
        labels=True,
        **_sized(settings.resize),
    )
    size = (settings.size, settings.size) if settings.size is not None else None
    asked = Asked(size=size, mean=settings.mean, std=settings.std, tensor=settings.tensor)
    done = compute(
        source,
        read_backbone(settings.backbone, asked),
        settings.output,
        batch_size=settings.batch_size,
        device=settings.device,
        threads=settings.threads,
        resume=settings.resume,
        drop_unreadable=settings.drop_unreadable,
    )
    dropped = f"; {done.dropped} images that cannot be read are left out" if done.dropped else ""
    print(f"{settings.output}: {done.rows} rows of {done.width} features{dropped}")


def _sized(side: int | None, otherwise: InputSpec | None = None) -> dict[str, Any]:
    """What rows are to be, for `training.data.open_data`: images brought to ``side``, if it is given."""
    from serving.readers.source import input_spec

    if side is None:
        return {"expected": otherwise}
    return {"expected": input_spec("uint8", (side, side, 3)), "resize": True}


def _refuse_file(output: Path) -> None:
    """Raise `NotADirectoryError` if ``output`` cannot become a folder: better known before the work."""
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))


def _disk_of(output: Path) -> Path:
    """The folder nearest to ``output`` that is there already."""
    return next(folder for folder in (output, *output.absolute().parents) if folder.is_dir())
