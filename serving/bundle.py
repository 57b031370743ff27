"""The bundle: the contract between training and serving.

A bundle is a directory ``<repository>/<name>/<version>/`` with two files: ``model.onnx``, the graph of
q(y|x) with all preprocessing inside, and ``manifest.json``, a versioned description of it. The layout is
also a valid Triton model repository. Nothing in a bundle is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.files import sync_directory, write_synced
from serving.manifest import MODEL_NAME_PATTERN, Manifest

GRAPH_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # fits an int64


class BundleError(ValueError):
    """A bundle cannot be read or written; the message says which file, what is wrong and what to do."""


class Bundle(BaseModel):
    """A verified bundle on disk. ``graph`` holds the very bytes whose hash was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    manifest: Manifest
    graph: bytes = Field(repr=False)


def sha256(data: bytes) -> str:
    """SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def parse_version(text: str) -> int | None:
    """Version number of a directory name, or ``None`` if it is not a positive integer."""
    return int(text) if _VERSION.fullmatch(text) else None


def find_bundles(repository: Path) -> list[Path]:
    """All bundle directories ``<name>/<version>`` under ``repository``, sorted by name and version.

    Other files and whatever is not named like a model, such as hidden and temporary directories, are
    passed over.

    Raises
    ------
    BundleError
        If ``repository`` is not a directory, or a folder cannot be read.
    """
    try:
        if not repository.is_dir():
            raise BundleError(f"model repository {repository} is not a directory; create it or pass another")
        found = [
            (model.name, version, path)
            for model in repository.iterdir()
            if re.match(MODEL_NAME_PATTERN, model.name) and model.is_dir()
            for path in model.iterdir()
            if path.is_dir() and (version := parse_version(path.name)) is not None
        ]
    except OSError as error:
        raise BundleError(f"cannot read model repository: {error.filename}: {error.strerror}") from error
    return [path for _, _, path in sorted(found)]


def read_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in directory ``path`` (``.../<name>/<version>``).

    The graph is read once; the hash is checked on the bytes that are returned, so that a file replaced
    in between cannot slip through.

    Raises
    ------
    BundleError
        If a file is missing or unreadable, the manifest does not fit its schema, or the hash differs.
    """
    path = Path(path)
    manifest_path, graph_path = path / MANIFEST_FILE, path / GRAPH_FILE
    try:
        text = manifest_path.read_bytes()
        graph = graph_path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"cannot read bundle {path}: {error.strerror or error}: {error.filename}; "
            f"a bundle holds {GRAPH_FILE} and {MANIFEST_FILE}, export it again"
        ) from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(f"{manifest_path}: {where}: {first['msg']}; export the model again") from error
    actual = sha256(graph)
    if actual != manifest.graph_sha256:
        raise BundleError(
            f"{graph_path}: SHA-256 is {actual}, the manifest says {manifest.graph_sha256}: "
            "the file is damaged or was replaced; copy or export the bundle again"
        )
    return Bundle(path=path, manifest=manifest, graph=graph)


def write_bundle(path: Path, manifest: Manifest, graph: bytes) -> Path:
    """Write a bundle atomically to ``path``: temporary directory, fsync, rename.

    A reader sees either nothing or the whole bundle.

    Raises
    ------
    BundleError
        If ``path`` does not end in ``<name>/<version>`` as the manifest has them, is already there, or
        cannot be written; nothing is left behind.
    """
    path = Path(path)
    if (path.parent.name, path.name) != (manifest.name, str(manifest.version)):
        raise BundleError(f"{path} must end in {manifest.name}/{manifest.version}")
    if manifest.graph_sha256 != sha256(graph):
        raise BundleError("the manifest's graph_sha256 is not the hash of the graph")
    if path.exists():
        raise BundleError(f"{path} already exists; versions are never overwritten, export to the next one")
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=path.parent))
        staging.chmod(0o755)
        write_synced(staging / GRAPH_FILE, graph)
        write_synced(staging / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
        sync_directory(staging)
        os.rename(staging, path)
        sync_directory(path.parent)
    except OSError as error:
        raise BundleError(f"cannot write bundle {path}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return path
