"""The plan: what is labelled by what, cut into shards. Written once; every process follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.files import write_atomically
from serving.labelling.failures import LabellingError
from serving.labelling.settings import LabelSettings
from serving.manifest import Manifest
from serving.readers import Source

PLAN_FILE = "_plan.json"
DEFAULT_ROWS_PER_SHARD = 262_144
CONTENT_LIMIT_BYTES = 1 << 30


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Part):
    """Rows ``start`` to ``stop`` of the input: the unit of work, and one output file."""

    index: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(ge=1)

    @property
    def name(self) -> str:
        """The output file's name without suffix."""
        return f"part-{self.index:05d}"

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


class PlanInput(_Part):
    """The data set: where it was, what it was, and how its columns are read."""

    path: str
    fingerprint: str = Field(description="content:SHA-256 or stat:SHA-256")
    n_rows: int = Field(ge=1)
    split: str
    label_column: str | None
    id_columns: tuple[str, ...]
    feature_columns: tuple[str, ...]
    resize: bool = False


class PlanModel(_Part):
    """The model."""

    name: str
    version: int
    graph_sha256: str


class Plan(_Part):
    """What ``_plan.json`` holds. It says nothing of when or by whom, so equal jobs make equal plans."""

    schema_version: Literal[1] = 1
    input: PlanInput
    model: PlanModel
    rows_per_shard: int = Field(ge=1)

    @property
    def shards(self) -> list[Shard]:
        """All shards in order. They depend on the input's rows only, never on the number of processes."""
        n_rows, step = self.input.n_rows, self.rows_per_shard
        return [
            Shard(index=index, start=start, stop=min(start + step, n_rows))
            for index, start in enumerate(range(0, n_rows, step))
        ]


def make_plan(settings: LabelSettings, source: Source, manifest: Manifest) -> Plan:
    """Plan the job that ``settings`` describe."""
    return Plan(
        input=PlanInput(
            path=str(settings.input),
            fingerprint=_fingerprint(settings, source),
            n_rows=source.n_rows,
            split=settings.split,
            label_column=settings.label_column,
            id_columns=settings.id_columns,
            feature_columns=settings.feature_columns,
            resize=settings.resize,
        ),
        model=PlanModel(name=manifest.name, version=manifest.version, graph_sha256=manifest.graph_sha256),
        rows_per_shard=settings.rows_per_shard or DEFAULT_ROWS_PER_SHARD,
    )


def read_plan(output: Path) -> Plan | None:
    """Read the plan in folder ``output``, or return ``None`` if there is none.

    Raises
    ------
    LabellingError
        If there is one that cannot be understood.
    """
    path = output / PLAN_FILE
    try:
        return Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        raise LabellingError(
            f"{path}: {'.'.join(map(str, first['loc'])) or 'the document'}: {first['msg']}; "
            "it is damaged or of another version: label into a new folder"
        ) from error


def write_plan(output: Path, plan: Plan) -> None:
    """Write the plan. Processes that start together write the same bytes, so the last one does no harm."""
    write_atomically(output / PLAN_FILE, plan.model_dump_json(indent=2).encode() + b"\n")


def refuse_changes(output: Path, found: Plan, wanted: Plan, *, rows_per_shard_given: bool) -> None:
    """Compare the job with the plan in the folder; where the input lies does not matter, what it holds does.

    Raises
    ------
    LabellingError
        If the input, the way it is read, the model or the given shard size is another; all are named.
    """
    skipped = {"path"} if found.input.fingerprint == wanted.input.fingerprint else set()
    pairs = {
        **{f"input {name}": _both(found.input, wanted.input, name) for name in PlanInput.model_fields},
        **{f"model {name}": _both(found.model, wanted.model, name) for name in PlanModel.model_fields},
    }
    if rows_per_shard_given:
        pairs["rows per shard"] = (found.rows_per_shard, wanted.rows_per_shard)
    changed = [
        f"{name} was {old!r} and is {new!r}"
        for name, (old, new) in pairs.items()
        if old != new and name.removeprefix("input ") not in skipped
    ]
    if changed:
        raise LabellingError(
            f"{output}: begun with something else: {'; '.join(changed)}; "
            "go on as it was begun, or label into a new folder"
        )


def _both(found: BaseModel, wanted: BaseModel, name: str) -> tuple[object, object]:
    return getattr(found, name), getattr(wanted, name)


def _fingerprint(settings: LabelSettings, source: Source) -> str:
    how = settings.fingerprint
    if how == "auto":
        n_bytes = sum(file.stat().st_size for file in source.files)
        how = "content" if n_bytes <= CONTENT_LIMIT_BYTES else "stat"
    return f"{how}:{source.fingerprint if how == 'content' else source.stat_fingerprint}"
