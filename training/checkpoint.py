"""Tensors and JSON on disk: safetensors, never pickle, always replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from serving.files import Content, remove_leftovers, write_atomically


class CheckpointError(ValueError):
    """A file of a run is missing, damaged or belongs to something else."""


def replace_file(path: Path, content: Content) -> None:
    """Write ``path`` atomically, and remove what killed processes left of earlier attempts."""
    remove_leftovers(path)
    write_atomically(path, content)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able ``meta`` into one file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, save(contiguous, {"meta": json.dumps(meta)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote, onto the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads((file.metadata() or {})["meta"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically."""
    replace_file(path, json.dumps(value, indent=2).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
