"""``suggest-k``: from a data set to a table, a picture and a document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import fill

from pydantic import BaseModel, ConfigDict

from training.checkpoint import replace_file
from training.cluster_count import Measure, measure, subsample
from training.config import EmbeddingMetric
from training.data import Data
from training.suggestion import Suggestion, suggest, table

PICTURE, DOCUMENT = "suggest-k.png", "suggest-k.json"


class Count(BaseModel):
    """The document ``suggest-k.json``: what was measured, on what, and what to make of it."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")

    data: str
    data_fingerprint: str
    rows: int
    rows_used: int
    embedding_metric: EmbeddingMetric
    seed: int
    measures: tuple[Measure, ...]
    suggestion: Suggestion

    def __str__(self) -> str:
        """Render as a table of text, with the verdict under it."""
        used = (
            "" if self.rows_used == self.rows else f" ({self.rows_used:,} of {self.rows:,} rows, at random)"
        )
        words = [fill(text, 100) for text in self.suggestion.words]
        return "\n".join([table(self.measures, self.suggestion), "", f"{self.data}{used}:", *words])

    def write(self, directory: Path) -> None:
        """Write picture and document into ``directory``, replacing those of an earlier time."""
        from training.report import plot_cluster_count

        directory.mkdir(parents=True, exist_ok=True)
        suggested = ", ".join(map(str, self.suggestion.suggested)) or "no structure found"
        plot_cluster_count(
            directory / PICTURE,
            {name: [getattr(m, name) for m in self.measures] for name in Measure.model_fields},
            self.suggestion.by_criterion if self.suggestion.structure else {},
            self.rows_used,
            f"How many clusters? {suggested}",
        )
        replace_file(directory / DOCUMENT, self.model_dump_json(indent=2).encode() + b"\n")


def count_clusters(
    loaded: Data,
    ks: range,
    *,
    rows: int,
    n_neighbors: int,
    embedding_metric: EmbeddingMetric = "euclidean",
    starts: int,
    repeats: int,
    seed: int,
    say: Callable[[str], None],
) -> Count:
    """Measure every K of ``ks`` on at most ``rows`` rows, and judge; see `training.cluster_count.measure`.

    Raises
    ------
    ValueError
        If the range does not fit the rows, or they cannot be clustered at all.
    """
    x = subsample(loaded.x, rows, seed)
    if len(x) < len(loaded.x):
        say(f"{len(x):,} of {len(loaded.x):,} rows are used, drawn at random")
    measures = tuple(
        measure(
            x,
            loaded.spec,
            ks,
            n_neighbors=n_neighbors,
            embedding_metric=embedding_metric,
            starts=starts,
            repeats=repeats,
            seed=seed,
            say=say,
        )
    )
    return Count(
        data=loaded.name,
        data_fingerprint=loaded.fingerprint,
        rows=len(loaded.x),
        rows_used=len(x),
        embedding_metric=embedding_metric,
        seed=seed,
        measures=measures,
        suggestion=suggest(measures),
    )
