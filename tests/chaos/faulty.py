"""``nvisa-serve`` with a device that can be broken: ``python -m tests.chaos.faulty FILE FLAGS...``.

While FILE says ``raise``, ``hang``, ``shape`` or ``nan``, that is what becomes of every run of a model. The
rest of the server is the real one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from serving import loading
from serving.cli import main
from serving.engine import Assignments, EngineError, OnnxEngine

FILE = Path(sys.argv[1] if __name__ == "__main__" else "/nowhere")


class FaultyEngine(OnnxEngine):
    """ONNX Runtime, but for what FILE says."""

    def assign(self, x: np.ndarray) -> Assignments:
        fault = _fault()
        if fault == "raise":
            raise EngineError("inference failed: the device is gone")
        while _fault() == "hang":
            time.sleep(0.01)
        answer = super().assign(x)
        if fault == "shape":
            return Assignments(answer.probabilities[1:], answer.clusters[1:])
        if fault == "nan":
            return Assignments(np.full_like(answer.probabilities, np.nan), answer.clusters)
        return answer


def _fault() -> str:
    try:
        return FILE.read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    loading.OnnxEngine = FaultyEngine  # type: ignore[misc]
    sys.exit(main(sys.argv[2:]))
