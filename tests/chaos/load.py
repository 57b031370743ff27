"""Callers that never pause, and compare every answer with the engine's."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from serving.bundle import read_bundle
from serving.client import ClusterClient, ClusterServiceError
from serving.engine import OnnxEngine
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import random_rows
from tests.servers import TIMEOUT, ServerProcess

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
]
_MOST_ROWS = 20
# So that callers spread over the workers whatever dies.
_CALLS_PER_CONNECTION = 25


class Answers:
    """Rows, and what the engine in this process says of them. No pixel is 255, which is a mark for faults."""

    def __init__(self, bundle: Path, n: int = 512) -> None:
        self.rows = np.minimum(random_rows(n), 254).astype(np.uint8)
        said = OnnxEngine(read_bundle(bundle), "cpu").assign(self.rows)
        self.clusters, self.probabilities = said.clusters, said.probabilities
        assert len(np.unique(self.clusters)) > 3  # an answer to another row would not go unnoticed

    def wrong(self, part: slice, clusters: np.ndarray, probabilities: np.ndarray) -> bool:
        """Whether this is not the answer to the rows of ``part``."""
        return not (
            np.array_equal(clusters, self.clusters[part])
            and np.allclose(probabilities, self.probabilities[part], rtol=1e-4, atol=1e-6)
        )


def request(x: np.ndarray) -> pb.AssignRequest:
    """Ask for clusters and probabilities of ``x``."""
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=x.shape, data=x.tobytes())
    return pb.AssignRequest(model_name="toy", input=tensor, want_probabilities=True)


def total(server: ServerProcess, name: str, **labels: str) -> float:
    """The sum of all samples of ``server`` called ``name`` that have these labels."""
    families = text_string_to_metric_families(server.get("/metrics")[1])
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Load:
    """Calls from several threads, for as long as the block lasts.

    Attributes
    ----------
    codes
        Calls by status, of callers that do not retry.
    retried
        The same of the project's client, which does.
    wrong
        Number of wrong answers.
    details
        What came with the last error of each status.
    pushback
        Milliseconds after which callers that do not retry were asked to come again, or ``None``, by status.
    """

    def __init__(self, target: str, answers: Answers, plain: int = 3, retrying: int = 1) -> None:
        self.codes: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.wrong = 0
        self.details: dict[str, str] = {}
        self.pushback: set[tuple[str, str | None]] = set()
        self._target = target
        self._answers = answers
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._crashes: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(work, seed))
            for seed, work in enumerate([self._plain] * plain + [self._retrying] * retrying)
        ]

    def __enter__(self) -> Self:
        self.start()
        self.answered(20)
        return self

    def start(self) -> None:
        """Let the callers begin, whatever they are answered."""
        for thread in self._threads:
            thread.start()

    def __exit__(self, kind: type[BaseException] | None, _: object, traceback: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Let the callers finish."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a call hangs"
        assert not self._crashes, self._crashes

    def answered(self, n: int) -> None:
        """Wait for ``n`` more right answers."""
        goal = self.right + n
        self.until(lambda: self.right >= goal)

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for ``condition`` while the callers call."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, (dict(self.codes), dict(self.retried), self.details)
            assert not self._crashes, self._crashes
            time.sleep(0.005)

    @property
    def right(self) -> int:
        """Number of right answers."""
        return self.codes["OK"] + self.retried["OK"] - self.wrong

    def _run(self, work: Callable[[np.random.Generator], None], seed: int) -> None:
        try:
            rng = np.random.default_rng(seed)
            while not self._stop.is_set():
                work(rng)
        except BaseException as error:
            self._crashes.append(error)

    def _part(self, rng: np.random.Generator) -> slice:
        n = int(rng.integers(1, _MOST_ROWS + 1))
        start = int(rng.integers(0, len(self._answers.rows) - n))
        return slice(start, start + n)

    def _plain(self, rng: np.random.Generator) -> None:
        with grpc.insecure_channel(self._target, _OPTIONS) as channel:
            stub = ClusterServiceStub(channel)
            for _ in range(_CALLS_PER_CONNECTION):
                part = self._part(rng)
                try:
                    reply = stub.Assign(request(self._answers.rows[part]), timeout=TIMEOUT)
                except grpc.RpcError as error:
                    self._count(self.codes, error.code().name, error.details() or "")
                    pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
                    self.pushback.add((error.code().name, pushback))
                    time.sleep(0.01)  # a port that refuses does so at once
                else:
                    clusters = np.frombuffer(reply.clusters_data, "<i8")
                    probabilities = np.frombuffer(reply.probabilities_data, "<f4").reshape(len(clusters), -1)
                    self._count(self.codes, "OK", "", self._answers.wrong(part, clusters, probabilities))
                if self._stop.is_set():
                    return

    def _retrying(self, rng: np.random.Generator) -> None:
        with ClusterClient(self._target) as client:
            for _ in range(_CALLS_PER_CONNECTION):
                part = self._part(rng)
                try:
                    result = client.assign(
                        self._answers.rows[part], model="toy", probabilities=True, timeout=TIMEOUT
                    )
                except ClusterServiceError as error:
                    self._count(self.retried, error.code.name, str(error))
                    time.sleep(0.01)
                else:
                    assert result.probabilities is not None
                    wrong = self._answers.wrong(part, result.clusters, result.probabilities)
                    self._count(self.retried, "OK", "", wrong)
                if self._stop.is_set():
                    return

    def _count(self, counter: Counter[str], code: str, details: str, wrong: bool = False) -> None:
        with self._lock:
            counter[code] += 1
            self.wrong += wrong
            if details:
                self.details[code] = details
