"""ONNX Runtime, imported in the one way that keeps it quiet."""

from __future__ import annotations

import os
from types import ModuleType


def import_onnxruntime() -> ModuleType:
    """Import ``onnxruntime`` with its telemetry off.

    Since 1.29 the packages on PyPI tell Microsoft of the process, its sessions and its models (hashes of
    them, the hardware, how often they ran), also on Linux, unless this variable is there when the library
    is loaded; calls of its API come too late for the first event. Who wants it on sets the variable to 0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
