"""Runs of a few fixed sizes between buffers that stay where they are: no allocation, and CUDA graphs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from serving.runtime import import_onnxruntime

# ONNX Runtime's numbers for graphs it shall neither record nor replay, and the first that it may.
_NO_GRAPH, _FIRST_GRAPH = -1, 1


@dataclass(frozen=True)
class Output:
    """Name, shape of one row and dtype of a graph's output."""

    name: str
    row_shape: tuple[int, ...]
    dtype: Any


class BoundRuns:
    """Runs a session through I/O binding, with one set of buffers on the device for each batch size.

    Without it each run allocates on the device, and there could be no CUDA graphs: they are replayed at the
    addresses and sizes that they were recorded with.

    Parameters
    ----------
    session
        An ONNX Runtime session.
    device
        Where its buffers lie: ``"cpu"`` or ``"cuda"``.
    input_name, row_shape, dtype
        What it takes.
    outputs
        What it gives, in the order of `run`'s results.
    sizes
        The batch sizes; others are run without buffers.
    graphs
        Record a CUDA graph for each size, and replay it: the session has ``enable_cuda_graph`` set. The first
        run of a size is made several times over, the last time to record it, so warm up with every size.
    """

    def __init__(
        self,
        session: Any,
        device: str,
        *,
        input_name: str,
        row_shape: tuple[int, ...],
        dtype: Any,
        outputs: Sequence[Output],
        sizes: Sequence[int],
        graphs: bool = False,
    ) -> None:
        ort = import_onnxruntime()
        self._session = session
        self._input_name = input_name
        self._names = [output.name for output in outputs]
        # On the CPU, `OrtValue.numpy` is a view of the buffer, which the next run overwrites.
        self._copies = device == "cpu"
        # Two runs at once would write to the same buffers.
        self._lock = threading.Lock()
        self._buffers = {}
        for number, size in enumerate(sizes):
            x = ort.OrtValue.ortvalue_from_shape_and_type((size, *row_shape), np.dtype(dtype), device, 0)
            results = [
                ort.OrtValue.ortvalue_from_shape_and_type((size, *o.row_shape), np.dtype(o.dtype), device, 0)
                for o in outputs
            ]
            binding = session.io_binding()
            binding.bind_ortvalue_input(input_name, x)
            for output, result in zip(outputs, results, strict=True):
                binding.bind_ortvalue_output(output.name, result)
            options = _run_options(ort, _FIRST_GRAPH + number) if graphs else None
            self._buffers[size] = (x, results, binding, options)
        self._without_graph = _run_options(ort, _NO_GRAPH) if graphs else None
        self._thread = _graph_thread() if graphs else None

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Run on ``x``, C-contiguous ``(size, *row_shape)``; the results are the caller's own.

        Raises
        ------
        Exception
            Whatever ONNX Runtime raises.
        """
        return self._run(x) if self._thread is None else self._thread(partial(self._run, x))

    def _run(self, x: np.ndarray) -> list[np.ndarray]:
        buffers = self._buffers.get(len(x))
        if buffers is None:
            found: list[np.ndarray] = self._session.run(
                self._names, {self._input_name: x}, self._without_graph
            )
            return found
        given, results, binding, options = buffers
        with self._lock:
            given.update_inplace(x)
            self._session.run_with_iobinding(binding, options)
            arrays = [result.numpy() for result in results]
            return [np.array(array) for array in arrays] if self._copies else arrays


class _OneThread:
    """Does the work of all who ask in one thread, in the order in which they ask."""

    def __init__(self, name: str) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        # A daemon: a model that hangs must not keep the process from ending.
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def __call__(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` there, and return what it returns or raise what it raises."""
        done: Future[Any] = Future()
        self._asked.put((work, done))
        return done.result()

    def _serve(self) -> None:
        while True:
            self._do(*self._asked.get())  # without names: none keeps a session while this waits

    @staticmethod
    def _do(work: Callable[[], Any], done: Future[Any]) -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)


@cache
def _graph_thread() -> _OneThread:
    """The one thread of all runs with CUDA graphs, whichever model's.

    ONNX Runtime keeps a graph for the thread that recorded it: what warms a model up would record for itself
    alone. And while one is recorded no other thread may copy to the device or wait for it: CUDA would fail
    both.
    """
    return _OneThread("CUDA graphs")


def _run_options(ort: Any, graph: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
