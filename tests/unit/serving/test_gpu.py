"""What ONNX Runtime is asked for on a GPU. Here there is none: a stand-in for it records what it is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serving.configuration import load_settings
from serving.gpu import GpuOptions
from serving.limits import gpu_options
from serving.runtime import CUDA, TENSORRT, DeviceError, open_session
from serving.settings import ServerSettings

CPU = "CPUExecutionProvider"


class Runtime:
    """ONNX Runtime with some providers, of which the ``broken`` ones give way to the next without a word.

    Nodes are left to the CPU where there is nothing else, and of a graph that ``computes_shapes`` always.
    """

    def __init__(self, available, broken=(), computes_shapes=False):
        self.available, self.broken, self.computes_shapes = available, broken, computes_shapes
        self.asked = []

    def get_available_providers(self):
        return self.available

    def SessionOptions(self):
        entries = {}
        return SimpleNamespace(add_session_config_entry=entries.__setitem__, entries=entries)

    def InferenceSession(self, graph, options, providers, enable_fallback):
        self.asked = providers
        in_use = [name for name, _ in providers if name not in self.broken]
        if options.entries.get("session.disable_cpu_ep_fallback") == "1" and (
            self.computes_shapes or not in_use
        ):
            raise RuntimeError("nodes are assigned to the CPU, but fallback has been disabled")
        return SimpleNamespace(get_providers=lambda: [*in_use, CPU])


@pytest.fixture
def runtime(monkeypatch):
    def runtime(available, broken=(), computes_shapes=False):
        stand_in = Runtime(available, broken, computes_shapes)
        monkeypatch.setattr("serving.runtime.import_onnxruntime", lambda: stand_in)
        return stand_in

    return runtime


def settings(*flags):
    return load_settings(ServerSettings, ["--model-repository", "m", *flags])


def providers(*flags):
    return gpu_options(settings(*flags)).providers("x", (28, 28), "f00d")


def test_by_default_the_arena_grows_by_what_it_needs_and_without_a_limit():
    [(name, options)] = providers()
    assert name == CUDA
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["use_tf32"] == "0"
    assert not {"gpu_mem_limit", "enable_cuda_graph"} & set(options)


def test_the_limit_of_memory_and_graphs_reach_the_provider():
    [(_, options)] = providers("--gpu-memory-bytes", "2000000000", "--cuda-graphs")
    assert (options["gpu_mem_limit"], options["enable_cuda_graph"]) == ("2000000000", "1")


def test_tensorrt_comes_first_and_builds_one_engine_for_all_batches(tmp_path):
    flags = ("--device", "cuda", "--tensorrt", "--max-batch-rows", "512", "--gpu-memory-bytes", "7")
    [(first, tensorrt), (second, cuda)] = providers(*flags)
    assert (first, second) == (TENSORRT, CUDA)
    assert tensorrt == {
        "trt_profile_min_shapes": "x:1x28x28",
        "trt_profile_opt_shapes": "x:512x28x28",
        "trt_profile_max_shapes": "x:512x28x28",
    }
    assert cuda["gpu_mem_limit"] == "7"
    [(_, cached), _] = providers(*flags, "--tensorrt-cache", str(tmp_path))
    for kind in ("engine", "timing"):  # in a folder of the graph's own: engines do not tell weights apart
        assert cached[f"trt_{kind}_cache_enable"] == "True"
        assert cached[f"trt_{kind}_cache_path"] == str(tmp_path / "f00d")


def open_on(device, options):
    return open_session(b"", device, 1, gpu_providers=options.providers("x", (2,), "f00d"))


def test_a_session_is_asked_for_what_there_is(runtime):
    ort = runtime([TENSORRT, CUDA, CPU])
    for tensorrt, names in ((False, [CUDA]), (True, [TENSORRT, CUDA])):
        session = open_on("cuda", GpuOptions(tensorrt=tensorrt))
        assert [name for name, _ in ort.asked] == names
        assert session.get_providers()[0] == names[0]


@pytest.mark.parametrize(
    ("available", "broken", "says"),
    [
        ([CPU], (), "this onnxruntime has no CUDA provider"),
        ([CUDA, CPU], (), f"this onnxruntime has no {TENSORRT}; leave out --tensorrt"),
        (
            [TENSORRT, CUDA, CPU],
            (TENSORRT,),
            f"{TENSORRT} cannot be used: asked for {TENSORRT}, got .*{CUDA}",
        ),
        (
            [TENSORRT, CUDA, CPU],
            (TENSORRT, CUDA),
            f"{TENSORRT} cannot be used: asked for {TENSORRT}, got .*{CPU}",
        ),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_takes_its_place(runtime, available, broken, says):
    runtime(available, broken)
    with pytest.raises(DeviceError, match=says):
        open_on("cuda", GpuOptions(tensorrt=True))


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_graph_that_computes_shapes_runs_on_cuda_but_for_them_and_it_is_logged(runtime, device, caplog):
    runtime([CUDA, CPU], computes_shapes=True)
    assert open_on(device, GpuOptions()).get_providers()[0] == CUDA
    [record] = caplog.records
    assert "parts of the graph run on the CPU" in record.message
    assert "assigned to the CPU" in record.why


def test_without_cuda_such_a_graph_is_refused_for_what_is_missing(runtime):
    runtime([CUDA, CPU], broken=(CUDA,), computes_shapes=True)
    with pytest.raises(DeviceError, match=f"asked for {CUDA}, got .*{CPU}.*check the driver"):
        open_on("cuda", GpuOptions())
    assert open_on("auto", GpuOptions()).get_providers()[0] == CPU
