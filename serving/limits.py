"""How much at once: the sizes of batches and the number of threads, as the settings and the device want."""

from __future__ import annotations

from dataclasses import dataclass

from serving.gpu import GpuOptions
from serving.runtime import available_cpus
from serving.settings import ServerSettings


@dataclass(frozen=True)
class BatchLimits:
    """How batches are formed.

    Attributes
    ----------
    max_batch_rows
        Most rows of one run; longer calls are split.
    max_queue_rows
        Rows that may wait, and so rows of one call.
    max_queue_seconds
        A call that would wait longer for the model is refused; 0 for no bound but ``max_queue_rows``.
    max_queue_delay
        Seconds a batch that is not full may wait for company while a thread is free. The event loop's
        timers are no finer than about a millisecond.
    buckets
        Batch sizes to pad to, ascending; empty to run every size as it is.
    threads
        Threads that run the model at once.
    inline_seconds
        A run that is expected to take no longer is made on the event loop; 0 makes all in threads.
    """

    max_batch_rows: int = 256
    max_queue_rows: int = 65536
    max_queue_seconds: float = 0.0
    max_queue_delay: float = 0.0
    buckets: tuple[int, ...] = ()
    threads: int = 1
    inline_seconds: float = 0.0


def batch_limits(settings: ServerSettings, device: str) -> BatchLimits:
    """How to batch on ``device``.

    On the CPU padding only adds work, and one thread per processor with single-threaded runs beats one
    run on all processors. On CUDA every new shape costs an allocation and a kernel search, while a few
    rows more are free; one session runs on one stream, so more threads gain nothing; and a run is a wait.
    """
    cuda = device == "cuda"
    return BatchLimits(
        max_batch_rows=settings.max_batch_rows,
        max_queue_rows=settings.max_queue_rows,
        max_queue_seconds=settings.max_queue_seconds,
        max_queue_delay=settings.max_queue_delay,
        buckets=buckets(settings.max_batch_rows) if cuda else (),
        threads=settings.inference_threads or (1 if cuda else processors(settings)),
        inline_seconds=0.0 if cuda else settings.inline_seconds,
    )


def buckets(max_batch_rows: int) -> tuple[int, ...]:
    """Batch sizes to pad to: 1, 4, 16, ... and ``max_batch_rows``."""
    sizes = []
    size = 1
    while size < max_batch_rows:
        sizes.append(size)
        size *= 4
    return (*sizes, max_batch_rows)


def gpu_options(settings: ServerSettings) -> GpuOptions:
    """How to run models on a GPU, if they do."""
    return GpuOptions(
        cuda_graphs=settings.cuda_graphs,
        memory_bytes=settings.gpu_memory_bytes,
        tensorrt=settings.tensorrt,
        tensorrt_cache=settings.tensorrt_cache,
        largest_batch=settings.max_batch_rows,
    )


def processors(settings: ServerSettings) -> int:
    """One worker's share of the processors that the server may use, at least one."""
    return max(1, available_cpus() // settings.workers)


def intra_op_threads(settings: ServerSettings) -> int:
    """Threads within one run: as asked, or the processors shared among the inference threads."""
    cpus = processors(settings)
    return settings.intra_op_threads or max(1, cpus // (settings.inference_threads or cpus))
