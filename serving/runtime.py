"""ONNX Runtime: imported in the one way that keeps it quiet, and sessions on the device that was asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


class DeviceError(RuntimeError):
    """CUDA was asked for and cannot be used; the message says why and what to do."""


def import_onnxruntime() -> ModuleType:
    """Import ``onnxruntime`` with its telemetry off.

    Since 1.29 the packages on PyPI tell Microsoft of the process, its sessions and its models (hashes of
    them, the hardware, how often they ran), also on Linux, unless this variable is there when the library
    is loaded; calls of its API come too late for the first event. Who wants it on sets the variable to 0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def available_cpus() -> int:
    """Processors this process may use: its affinity, cut by the container's CPU quota (cgroup v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):
        return count


def open_session(
    graph: bytes,
    device: Device,
    threads: int,
    *,
    spin: bool = False,
    gpu_providers: Sequence[tuple[str, dict[str, str]]] = ((CUDA, {}),),
) -> Any:
    """An ``InferenceSession`` of ``graph`` that really runs where it says.

    Parameters
    ----------
    graph
        A serialised ONNX model.
    device
        ``"cuda"`` is CUDA or an error; ``"auto"`` takes CUDA if it is usable and the CPU otherwise. Nodes of
        a graph on CUDA that it cannot run, or that compute shapes, are on the CPU; that is logged.
    threads
        Threads within one run.
    spin
        Let idle threads spin.
    gpu_providers
        ONNX Runtime's providers for CUDA with their options, first choice first: CUDA's own, or TensorRT's
        before it.

    Raises
    ------
    DeviceError
        If CUDA was asked for and cannot be used.
    Exception
        Whatever ONNX Runtime raises for a graph that it cannot load on the CPU.
    """
    ort = import_onnxruntime()

    def build(cuda: bool, whole: bool = True) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 4 if cuda and whole else 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        if cuda and whole:
            # ONNX Runtime moves to the CPU without a word unless it is told not to.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = list(gpu_providers) if cuda else [("CPUExecutionProvider", {})]
        name = providers[0][0]
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        if session.get_providers()[0] != name:
            raise DeviceError(f"asked for {name}, got {session.get_providers()}")
        return session

    if device != "cpu":
        has_cuda = CUDA in ort.get_available_providers()
        if not has_cuda and device == "cuda":
            raise DeviceError(
                "device=cuda: this onnxruntime has no CUDA provider; install onnxruntime-gpu instead of "
                "onnxruntime, or use --device cpu"
            )
        if has_cuda and gpu_providers[0][0] not in ort.get_available_providers():
            raise DeviceError(f"this onnxruntime has no {gpu_providers[0][0]}; leave out --tensorrt")
        if has_cuda:
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            try:
                return _whole_or_in_parts(build)
            except Exception as error:
                if device == "cuda":
                    raise DeviceError(
                        f"device=cuda: {gpu_providers[0][0]} cannot be used: {error}; check the driver and "
                        "the versions of CUDA, cuDNN and, with --tensorrt, TensorRT, or use --device cpu"
                    ) from error
                log.warning("device=auto: CUDA is there and cannot be used", extra={"why": str(error)})
    return build(cuda=False)


def _whole_or_in_parts(build: Callable[..., Any]) -> Any:
    """Build a session on CUDA; if some nodes have to be on the CPU, say so.

    Asked for nothing on the CPU, ONNX Runtime has one message for a provider that is not there and for a
    graph that computes shapes, which it does on the CPU by design. Not asked, a session tells its providers.
    """
    try:
        return build(cuda=True)
    except Exception as error:
        session = build(cuda=True, whole=False)
        log.warning("parts of the graph run on the CPU, the rest on CUDA", extra={"why": str(error)})
        return session
