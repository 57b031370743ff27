"""The graph under ONNX Runtime, for servers that are no part of this project. Imports nothing of it."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

SHAPE = (28, 28)


class OnnxModel:
    """``path`` with ``threads`` a run; threads that wait do not spin, since there are other processes."""

    def __init__(self, path: str, threads: int = 2) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities, float32 ``(n, 10)``, and clusters, int64 ``(n,)``, of uint8 ``(n, 28, 28)``."""
        return tuple(self._session.run(["probabilities", "cluster"], {"x": x}))

    def answer(self, body: bytes) -> bytes:
        """The same for pixels as bytes, as HTTP servers get them: clusters, then probabilities."""
        probabilities, clusters = self.run(np.frombuffer(body, np.uint8).reshape(-1, *SHAPE))
        return clusters.tobytes() + probabilities.tobytes()
