"""Features of images by a backbone: computed in parts that survive a kill, then written as one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.progress import Progress
from serving.readers import Chunk, DataError, Source
from serving.runtime import Device
from training.backbone import Backbone
from training.checkpoint import CheckpointError
from training.extractor import Extractor, check_images
from training.feature_files import check_suffix, table_of, vectors_of, write_features
from training.feature_parts import Parts
from training.origin import N_EXAMPLES, Origin, origin_file, read_beside, save_beside

PART_ROWS = 512
_SHOWN = 3
# Column of the parts that is not of the output: the images that are kept as examples.
_EXAMPLE = "example image"


@dataclass(frozen=True)
class Computed:
    """What was written.

    Attributes
    ----------
    rows, width
        Shape of the features.
    dropped
        How many unreadable images were left out.
    """

    rows: int
    width: int
    dropped: int


def compute(
    source: Source,
    backbone: Backbone,
    output: Path,
    *,
    batch_size: int = 16,
    device: Device = "auto",
    threads: int = 0,
    resume: bool = False,
    drop_unreadable: bool = False,
    progress: Callable[[int, int], Progress] = Progress,
) -> Computed:
    """Write the features of all images of ``source`` to ``output``, in order, and beside it their origin.

    Parameters
    ----------
    source
        Images; labels, if it has them, are carried over and looked at by nobody.
    backbone
        What makes the features.
    output
        ``.parquet``, ``.npz`` or ``.npy``, see `training.feature_files.write_features`.
    batch_size
        Images at once.
    device, threads
        See `training.extractor.Extractor`.
    resume
        Go on with the parts that a stopped run left. If it had finished, nothing is done.
    drop_unreadable
        Leave out images that cannot be read; the column ``row`` tells which are there.
    progress
        Makes what shows the progress, from the number of rows and of those already done.

    Raises
    ------
    DataError
        If an image cannot be read and ``drop_unreadable`` is not set. Parts before it are kept.
    CheckpointError
        If ``output`` is there already, or there are parts of another run.
    BackboneError
        If the rows are no images, or the backbone cannot be run.
    """
    check_suffix(output)
    if output.exists() and not resume:
        raise CheckpointError(f"{output} exists already: pass another --output")
    check_images(source.input, str(source.path))
    n_parts = -(-source.n_rows // PART_ROWS)
    parts = Parts(output, n_parts)
    if output.exists() and (origin_file(output).exists() or not parts.folder.exists()):
        done = _finished(source, backbone, output)
        parts.remove()
        return done
    extractor = Extractor(backbone, source.input, device, threads)
    plan = {
        "images": source.input.model_dump(mode="json"),
        "fingerprint": source.fingerprint,
        "labels": source.has_labels,
        "part_rows": PART_ROWS,
        "recipe": backbone.recipe.model_dump(mode="json"),
    }
    parts.open(plan, resume=resume)
    first = parts.n_done()
    begin = min(first * PART_ROWS, source.n_rows)
    with progress(source.n_rows, begin) as shown:
        shown.say(f"{backbone}; on {extractor.device}")
        if first:
            shown.say(f"{first} of {n_parts} parts are there already")
        for index, chunk in enumerate(source.chunks(begin, None, PART_ROWS), first):
            if chunk.errors and not drop_unreadable:
                if index == 0:
                    parts.remove()  # nothing to go on with: the next run may be another
                raise DataError(_unreadable(source, chunk))
            good = np.array([row for row in range(len(chunk)) if row not in chunk.errors], np.int64)
            vectors = np.empty((len(good), backbone.width), np.float32)
            for start in range(0, len(good), batch_size):
                batch = good[start : start + batch_size]
                vectors[start : start + batch_size] = extractor(chunk.x[batch])
                shown.add(len(batch))
            if chunk.errors:
                shown.add(len(chunk.errors))
            _check_finite(source, chunk.start + good, vectors, backbone)
            parts.write(index, _part(source, chunk, good, vectors))
    n_rows = parts.n_rows
    if not n_rows:
        raise DataError(f"{source.path}: none of its {source.n_rows} images can be read")
    write_features(output, lambda: (t.drop_columns(_EXAMPLE) for t in parts.tables()), n_rows, backbone.width)
    more = {"data": source.path.name, "fingerprint": source.fingerprint, "rows": n_rows}
    save_beside(_origin(source, backbone, parts), output, more)
    parts.remove()
    return Computed(n_rows, backbone.width, source.n_rows - n_rows)


def _part(source: Source, chunk: Chunk, good: np.ndarray, vectors: np.ndarray) -> pa.Table:
    """The table of a chunk's readable rows, the images among them that are kept as examples included."""
    rows = chunk.start + good
    labels = None if chunk.labels is None else _named(source, chunk.labels[good])
    ids = None if chunk.ids is None else chunk.ids.take(good)
    step = -(-source.n_rows // N_EXAMPLES)
    examples = [chunk.x[row - chunk.start].tobytes() if row % step == 0 else None for row in rows]
    return table_of(rows, vectors, labels, ids).append_column(_EXAMPLE, pa.array(examples, pa.binary()))


def _named(source: Source, labels: np.ndarray) -> np.ndarray:
    """Labels as the source has them: text, or whole numbers."""
    names = source.label_names
    return labels if names is None else np.array(names, object)[labels]


def _unreadable(source: Source, chunk: Chunk) -> str:
    bad = sorted(chunk.errors.items())
    shown = []
    for offset, message in bad[:_SHOWN]:
        ids = [] if chunk.ids is None else chunk.ids.slice(offset, 1).to_pylist()[0].values()
        known = f" ({', '.join(map(str, ids))})" if ids else ""
        shown.append(f"row {chunk.start + offset}{known}: {message}")
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    last = chunk.start + len(chunk) - 1
    return (
        f"{source.path}: {len(bad)} of the rows {chunk.start} to {last} cannot be read: "
        f"{'; '.join(shown)}{more}; go on without them with --resume --drop-unreadable, or repair them "
        "(--resize brings all to one size) and begin anew"
    )


def _check_finite(source: Source, rows: np.ndarray, vectors: np.ndarray, backbone: Backbone) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{source.path}: {backbone.name} gives NaN or infinity for row {rows[finite.argmin()]}: is "
            "it whole, and are --mean and --std right?"
        )


def _origin(source: Source, backbone: Backbone, parts: Parts) -> Origin:
    """Where the features come from, with the examples that the parts hold."""
    images, features = [], []
    for table in parts.tables():
        column = table.column(_EXAMPLE)
        features.append(vectors_of(table)[column.is_valid().to_numpy()])
        images += column.drop_null().to_pylist()
    return Origin(
        backbone=backbone.name,
        recipe=backbone.recipe,
        images=source.input,
        examples=np.frombuffer(b"".join(images), np.uint8).reshape(-1, *source.input.shape).copy(),
        features=np.concatenate(features),
    )


def _finished(source: Source, backbone: Backbone, output: Path) -> Computed:
    """What there is already, if it is what was asked for."""
    if read_beside([output]) is None:
        raise CheckpointError(
            f"{output} exists already, and was not made by this command: pass another --output"
        )
    origin, more = Origin.load(origin_file(output))
    if (origin.recipe, more["fingerprint"]) != (backbone.recipe, source.fingerprint):
        raise CheckpointError(
            f"{output} holds the features of other images or another backbone: pass another"
        )
    return Computed(more["rows"], backbone.width, source.n_rows - more["rows"])
