"""Labels: names that point at versions, in ``<repository>/<name>/labels.yaml``.

::

    stable: 3                          # answers calls that name no version
    canary: {version: 4, share: 0.05}  # answers this share of them in its place
    shadow: {version: 5}               # gets a copy of what stable answered, to be compared
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.manifest import InputSpec

LABELS_FILE = "labels.yaml"
LABELS = ("stable", "canary", "shadow")
# A labels file takes some hundred bytes.
MAX_BYTES = 1 << 16


class LabelsError(ValueError):
    """Labels cannot be used; the message says why."""


class _Part(BaseModel):
    # Strict: a version in quotes, or `true` for 1, is a mistake.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Canary(_Part):
    """A version that answers a share of the calls that name none."""

    version: int = Field(ge=1)
    share: float = Field(gt=0, lt=1)


class Shadow(_Part):
    """A version whose answers nobody sees: they are compared with the stable one's."""

    version: int = Field(ge=1)


class Labels(_Part):
    """What a labels file says."""

    stable: int = Field(ge=1)
    canary: Canary | None = None
    shadow: Shadow | None = None

    @model_validator(mode="after")
    def _others_than_stable(self) -> Self:
        for label, version in self.versions().items():
            if label != "stable" and version == self.stable:
                raise ValueError(f"{label} and stable are both version {version}")
        return self

    def versions(self) -> dict[str, int]:
        """Return the version that each label points at."""
        found = {"stable": self.stable}
        if self.canary is not None:
            found["canary"] = self.canary.version
        if self.shadow is not None:
            found["shadow"] = self.shadow.version
        return found

    def shares(self) -> dict[str, float]:
        """Return the share of the calls without a version that each label's version answers."""
        canary = self.canary.share if self.canary is not None else 0.0
        given = {"stable": 1.0 - canary, "canary": canary, "shadow": 0.0}
        return {label: given[label] for label in self.versions()}


def check_versions(labels: Labels, inputs: Mapping[int, InputSpec], missing: str = "not loaded") -> None:
    """Make sure that calls which name no version may go where ``labels`` point.

    Parameters
    ----------
    labels
        To be checked.
    inputs
        What each version takes that there is.
    missing
        How a version that there is not is described.

    Raises
    ------
    LabelsError
        If a label points at none of them, or at one that takes other rows than the stable one.
    """
    for label, version in labels.versions().items():
        if version not in inputs:
            raise LabelsError(f"{label} is version {version}, which is {missing}")
        # Whoever names no version does not know which will answer.
        if difference := inputs[labels.stable].difference(inputs[version]):
            raise LabelsError(
                f"{label} is version {version}, which takes other rows than stable: {difference}"
            )


def parse_labels(content: bytes) -> Labels:
    """Return what a labels file with ``content`` says.

    Raises
    ------
    LabelsError
        If it is not YAML, or does not fit the schema.
    """
    # Imported here: a server without labels does not wait for it.
    import yaml

    if len(content) > MAX_BYTES:
        raise LabelsError(f"more than {MAX_BYTES} bytes, that is no labels file")
    try:
        document: Any = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise LabelsError(f"not YAML: {' '.join(str(error).split())}") from error
    return as_labels(document)


def as_labels(document: Any) -> Labels:
    """Return the labels that a file's ``document`` holds.

    Raises
    ------
    LabelsError
        If it does not fit the schema.
    """
    try:
        return Labels.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        raise LabelsError(f"{where}: {why}" if where else why) from error


def write_labels(labels: Labels) -> bytes:
    """Return the content of a file with ``labels``."""
    import yaml

    # One line a label, the canary's parts in braces.
    lines = [
        yaml.safe_dump(
            {label: value}, sort_keys=False, default_flow_style=None if label != "stable" else False
        )
        for label, value in labels.model_dump(exclude_none=True).items()
    ]
    return "".join(lines).encode()
