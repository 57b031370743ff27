"""The server's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from serving.addresses import is_loopback
from serving.configuration import LayeredSettings
from serving.logs import LogFormat, LogLevel
from serving.runtime import Device

ModelControl = Literal["none", "poll", "explicit"]
Port = Annotated[int, Field(ge=0, le=65535)]


class ServerSettings(LayeredSettings):
    """Serve NVISA bundles over gRPC.

    Every flag is also an environment variable, NVISA_SERVE_ and the name in capitals with underscores,
    and a key of the YAML file that --config names.
    """

    model_config = SettingsConfigDict(env_prefix="NVISA_SERVE_", cli_prog_name="nvisa-serve")

    model_repository: Path = Field(description="folder of bundles, <name>/<version>/")
    host: str = Field(
        "127.0.0.1",
        description="address to listen on; 0.0.0.0 for all: anyone may call then, unless --token-file or "
        "--tls-client-ca is given",
    )
    grpc_port: Port = Field(8001, description="gRPC port; 0 takes any free one")
    metrics_port: Port = Field(
        8002, description="HTTP port of /metrics, /healthz and /readyz; 0 takes a free one"
    )
    health_port: Port | None = Field(
        None,
        description="plaintext gRPC port with the health service alone, for probes that speak no TLS; "
        "0 takes a free one",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file: the server's certificate, then intermediate ones; gRPC is TLS then"
    )
    tls_key: Path | None = Field(None, description="PEM file: its private key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file: only clients with a certificate that one of these signed may connect"
    )
    token_file: Path | None = Field(
        None,
        description="role:token lines; callers must show one. Roles: inference, and admin, which may also "
        "load and unload models",
    )
    allow_insecure_tokens: bool = Field(
        False, description="take tokens without TLS beyond this machine, as behind a proxy that does TLS"
    )
    health_needs_token: bool = Field(False, description="ask for a token on the health service, too")
    reflection_needs_token: bool = Field(True, description="ask for a token on --reflection, too")
    reload_seconds: float = Field(
        5.0, gt=0, description="how often certificate and token files are looked at for a change"
    )
    port_file: Path | None = Field(None, description="write the ports in use to this file, as JSON")
    model_control: ModelControl = Field(
        "none",
        description="poll takes up bundles as they come and go; explicit loads and unloads by RPCs of the "
        "Open Inference Protocol's extension; none keeps what was there at start",
    )
    poll_seconds: float = Field(
        5.0,
        gt=0,
        description="how often --model-control poll looks for bundles, and poll and explicit for changed "
        "labels; what two looks find the same is taken",
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="processes that share the gRPC port and the processors; bounds such as --max-queue-rows "
        "hold for each. On the CPU only",
    )
    device: Device = Field(
        "auto", description="cuda refuses to start without CUDA; auto takes it if it is there"
    )
    allow_partial: bool = Field(
        False, description="serve the models that load even if others are broken, instead of exiting"
    )
    max_batch_rows: int = Field(256, ge=1, description="most rows of one model run")
    max_queue_rows: int = Field(
        65536, ge=1, description="rows that may wait, per model, and so rows of one call"
    )
    max_queue_seconds: float = Field(
        0.25,
        ge=0,
        description="a call that would wait longer for the model is refused at once, unless fewer than eight "
        "calls, or less than a full batch for each thread, wait; 0: only --max-queue-rows bounds the wait",
    )
    max_pending_calls: int = Field(
        1000,
        ge=1,
        le=2**31 - 1,
        description="most calls that may wait to be read, while the server is too busy to; gRPC turns others "
        "away with CANCELLED, and from a quarter of them on some, the more the more wait",
    )
    max_queue_delay: float = Field(
        0.0, ge=0, le=1, description="seconds to wait for a fuller batch while the model is idle"
    )
    max_message_bytes: int = Field(
        64 * 2**20, ge=1024, le=2**31 - 1, description="largest message taken or sent"
    )
    max_connection_age: float = Field(
        0.0,
        ge=0,
        description="seconds after which clients are asked to connect anew, and find new servers; 0: never",
    )
    inference_threads: int = Field(
        0, ge=0, description="threads that run each model; 0: one per processor on the CPU, one on CUDA"
    )
    inline_seconds: float = Field(
        0.001,
        ge=0,
        le=0.1,
        description="on the CPU, runs that are expected to be shorter are made on the event loop, not in a "
        "thread; 0: none",
    )
    intra_op_threads: int = Field(
        0, ge=0, description="threads within one run; 0 shares the processors among the inference threads"
    )
    cuda_graphs: bool = Field(
        False, description="on CUDA, replay the model as one graph for each batch size; not yet measured"
    )
    gpu_memory_bytes: int = Field(
        0,
        ge=0,
        description="on CUDA, most that the arena for one model takes on the device; 0: as much as there is",
    )
    tensorrt: bool = Field(
        False,
        description="with --device cuda, run models through TensorRT, which has to be installed; not yet "
        "measured",
    )
    tensorrt_cache: Path | None = Field(
        None,
        description="folder that exists, where TensorRT keeps what it builds, for minutes, of each model",
    )
    run_timeout_seconds: float = Field(
        60.0,
        ge=0,
        description="a run of a model that takes longer ends the server with an error, so that whatever "
        "started it starts it again; 0 waits for ever",
    )
    failed_runs: int = Field(
        3,
        ge=1,
        description="after so many failed runs of a model in a row, rows of its own are tried; if they fail, "
        "too, its calls are refused, and the server is not ready, until they succeed",
    )
    failing_seconds: float = Field(
        0.0,
        ge=0,
        description="a model that fails for so long ends the server with an error, so that whatever started "
        "it starts it again: a GPU that is lost comes back to no process that had it; 0 waits for ever",
    )
    low_confidence: float = Field(0.5, ge=0, le=1, description="rows below this count as low confidence")
    drift_window_rows: int = Field(
        10_000, ge=100, description="drift is measured over about so many last rows"
    )
    reflection: bool = Field(False, description="let gRPC clients list services and messages")
    drain_seconds: float = Field(
        5.0, ge=0, description="after SIGTERM, serve on for so long while load balancers notice"
    )
    grace_seconds: float = Field(
        30.0, ge=0, description="then let calls in flight finish for at most so long"
    )
    tracing: bool = Field(
        False, description="send OpenTelemetry traces; where to and how many, OTEL_* variables say"
    )
    log_format: LogFormat = Field("auto", description="auto: text on a terminal, JSON elsewhere")
    log_level: LogLevel = Field("info", description="debug also logs every call")

    @model_validator(mode="after")
    def _check_security(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key go together; pass both")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("--tls-client-ca needs TLS; pass --tls-certificate and --tls-key, too")
        if self.health_needs_token and self.token_file is None:
            raise ValueError("--health-needs-token: there are no tokens; pass --token-file, too")
        local = is_loopback(self.host) or self.tls_certificate is not None
        if self.token_file is not None and not local and not self.allow_insecure_tokens:
            raise ValueError(
                f"--token-file: tokens would cross the network to {self.host} in plaintext; pass "
                "--tls-certificate and --tls-key, listen on 127.0.0.1, or pass --allow-insecure-tokens if "
                "a proxy before this server does TLS"
            )
        return self

    @model_validator(mode="after")
    def _check_gpu(self) -> Self:
        if self.tensorrt and self.device != "cuda":
            raise ValueError("--tensorrt runs on CUDA alone; pass --device cuda, too")
        if self.tensorrt and self.cuda_graphs:
            raise ValueError(
                "--tensorrt and --cuda-graphs: TensorRT replays no graphs here; pass one of them"
            )
        if self.tensorrt_cache is not None and not self.tensorrt:
            raise ValueError("--tensorrt-cache: there is nothing to keep; pass --tensorrt, too")
        if self.tensorrt_cache is not None and not self.tensorrt_cache.is_dir():
            raise ValueError(f"--tensorrt-cache: {self.tensorrt_cache} is not a folder; make it first")
        if self.gpu_memory_bytes and (self.device == "cpu" or self.workers > 1):
            raise ValueError("--gpu-memory-bytes: models run on the CPU; pass --device cuda or auto")
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.workers == 1:
            return self
        if self.device == "cuda":
            raise ValueError(
                "--workers: a GPU belongs to one process; pass --device cpu, or --workers 1 and as many "
                "servers as there are GPUs"
            )
        # A call to load or unload a model would reach one worker of many.
        if self.model_control == "explicit":
            raise ValueError(
                "--workers: with --model-control explicit, a model would be loaded by one worker of many; "
                "pass --model-control poll, or --workers 1"
            )
        return self
