"""Labels files of a repository: changed, and changed back, without anyone writing YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.bundle import BundleError, find_bundles, read_bundle
from serving.files import write_atomically
from serving.labels import (
    LABELS,
    LABELS_FILE,
    MAX_BYTES,
    Labels,
    LabelsError,
    as_labels,
    check_versions,
    parse_labels,
    write_labels,
)
from serving.manifest import Manifest

# What was in force before the last change; empty if there were no labels. Servers pass over it.
PREVIOUS_FILE = ".labels.previous.yaml"


@dataclass(frozen=True)
class Listed:
    """One version in a repository: its manifest or why it cannot be used, and its labels."""

    name: str
    version: int
    manifest: Manifest | None
    problem: str
    labels: tuple[str, ...]


def list_versions(repository: Path) -> tuple[list[Listed], dict[str, str]]:
    """Return every version in ``repository``, and by model why its labels cannot be used.

    Raises
    ------
    BundleError
        If the repository cannot be read.
    """
    listed: list[Listed] = []
    problems: dict[str, str] = {}
    paths = find_bundles(repository)
    for name in dict.fromkeys(path.parent.name for path in paths):
        pointing: dict[int, list[str]] = {}
        read = [_read_version(path) for path in paths if path.parent.name == name]
        try:
            content = _content(repository / name / LABELS_FILE)
            if content is not None:
                labels = parse_labels(content)
                for label, version in labels.versions().items():
                    pointing.setdefault(version, []).append(label)
                inputs = {v: m.input for v, m, _ in read if m is not None}
                check_versions(labels, inputs, missing="not there, or damaged")
        except LabelsError as error:
            problems[name] = f"{repository / name / LABELS_FILE}: {error}"
        listed += [Listed(name, v, m, problem, tuple(pointing.get(v, ()))) for v, m, problem in read]
    return listed, problems


def change_labels(repository: Path, name: str, changes: Mapping[str, Mapping[str, object] | None]) -> Labels:
    """Change the labels of model ``name``; those that ``changes`` do not name stay as they are.

    Parameters
    ----------
    changes
        By label: its ``version``, and of the canary its ``share``; ``None`` takes the label away.

    Returns
    -------
    Labels
        What is in the file now.

    Raises
    ------
    LabelsError
        If the labels cannot be used with the bundles that are there; nothing is changed then.
    BundleError
        If the repository cannot be read.
    OSError
        If the file cannot be written; it is then as it was.
    """
    unknown = sorted(set(changes) - set(LABELS))
    if unknown:
        raise LabelsError(f"there is no label {unknown[0]!r}; labels are {', '.join(LABELS)}")
    before = _content(repository / name / LABELS_FILE)
    document = parse_labels(before).model_dump(exclude_none=True) if before is not None else {}
    for label, change in changes.items():
        if change is None:
            document.pop(label, None)
        elif label == "stable":
            document[label] = change["version"]
        else:
            old = document.get(label, {}) if label == "canary" else {}
            document[label] = {**old, **change}
    labels = as_labels(document)
    _check(repository, name, labels)
    _put(repository / name, write_labels(labels), before)
    return labels


def roll_back(repository: Path, name: str) -> Labels | None:
    """Put back the labels from before the last change; done twice, the change is back.

    Returns
    -------
    Labels or None
        What is in force now; ``None`` if there were no labels, and there is no file any more.

    Raises
    ------
    LabelsError
        If there is nothing to go back to, or what was there before can be used no more.
    BundleError
        If the repository cannot be read.
    OSError
        If a file cannot be written.
    """
    folder = repository / name
    before, previous = _content(folder / LABELS_FILE), _content(folder / PREVIOUS_FILE)
    if previous is None or previous == (before or b""):
        raise LabelsError(f"{folder}: no change by nvisa-models is on record; set the labels themselves")
    if not previous:
        _put(folder, None, before)
        return None
    labels = parse_labels(previous)
    _check(repository, name, labels)
    _put(folder, previous, before)
    return labels


def _check(repository: Path, name: str, labels: Labels) -> None:
    paths = {int(path.name): path for path in find_bundles(repository) if path.parent.name == name}
    if not paths:
        raise LabelsError(f"{repository} has no model {name!r}")
    inputs = {}
    for version in set(labels.versions().values()) & set(paths):
        inputs[version] = read_bundle(paths[version]).manifest.input
    there = ", ".join(map(str, sorted(paths)))
    check_versions(labels, inputs, missing=f"not in {repository / name}, which has {there}")


def _put(folder: Path, content: bytes | None, before: bytes | None) -> None:
    write_atomically(folder / PREVIOUS_FILE, before or b"")
    if content is None:
        (folder / LABELS_FILE).unlink(missing_ok=True)
    else:
        write_atomically(folder / LABELS_FILE, content)


def _read_version(path: Path) -> tuple[int, Manifest | None, str]:
    try:
        return int(path.name), read_bundle(path).manifest, ""
    except BundleError as error:
        return int(path.name), None, str(error)


def _content(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LabelsError(f"cannot read {path}: {error.strerror}") from error
