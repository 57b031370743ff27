"""How models run on a GPU: the options of ONNX Runtime's CUDA and TensorRT providers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.runtime import CUDA, TENSORRT

# As on the CPU, products are in float32 and not in TF32's ten bits; a new shape costs no search of all of
# cuDNN's algorithms; and the arena does not double whenever it grows.
_CUDA_OPTIONS = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}

GpuProviders = list[tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class GpuOptions:
    """What the settings say of a GPU; on the CPU nothing of it is looked at.

    Attributes
    ----------
    cuda_graphs
        Replay the sizes that an engine is prepared for as one graph; see `serving.bound_runs`.
    memory_bytes
        Most that the arena of one model takes on the device; 0 for as much as there is.
    tensorrt
        Run what TensorRT can run through it, and the rest on CUDA.
    tensorrt_cache
        Folder where TensorRT keeps what it built, in one for each graph; without, it builds at every start.
    largest_batch
        Rows of the largest run that TensorRT builds for.
    """

    cuda_graphs: bool = False
    memory_bytes: int = 0
    tensorrt: bool = False
    tensorrt_cache: Path | None = None
    largest_batch: int = 256

    def providers(self, input_name: str, row_shape: tuple[int, ...], graph_sha256: str) -> GpuProviders:
        """Return ONNX Runtime's providers for a graph with this input and hash, first choice first."""
        cuda = dict(_CUDA_OPTIONS)
        if self.cuda_graphs:
            cuda["enable_cuda_graph"] = "1"
        if self.memory_bytes:
            cuda["gpu_mem_limit"] = str(self.memory_bytes)
        if not self.tensorrt:
            return [(CUDA, cuda)]
        # One engine for every batch: without a profile TensorRT builds another one, for minutes, whenever a
        # batch is larger or smaller than all before.
        sizes = {"min": 1, "opt": self.largest_batch, "max": self.largest_batch}
        tensorrt = {
            f"trt_profile_{which}_shapes": f"{input_name}:{'x'.join(map(str, (rows, *row_shape)))}"
            for which, rows in sizes.items()
        }
        if self.tensorrt_cache is not None:
            for kind in ("engine", "timing"):
                tensorrt[f"trt_{kind}_cache_enable"] = "True"  # of TensorRT's options "1" is refused
                # A folder, which ONNX Runtime makes, for each graph: it names engines after the names in a
                # graph, not its weights, and would run a new version with the engine of the old.
                tensorrt[f"trt_{kind}_cache_path"] = str(self.tensorrt_cache / graph_sha256)
        return [(TENSORRT, tensorrt), (CUDA, cuda)]


NO_GPU_OPTIONS = GpuOptions()
