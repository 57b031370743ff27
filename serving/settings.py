"""The server's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from serving.configuration import LayeredSettings
from serving.engine import Device
from serving.logs import LogFormat, LogLevel

Port = Annotated[int, Field(ge=0, le=65535)]


class ServerSettings(LayeredSettings):
    """Serve NVISA bundles over gRPC.

    Every flag is also an environment variable, NVISA_SERVE_ and the name in capitals with underscores,
    and a key of the YAML file that --config names.
    """

    model_config = SettingsConfigDict(env_prefix="NVISA_SERVE_", cli_prog_name="nvisa-serve")

    model_repository: Path = Field(description="folder of bundles, <name>/<version>/")
    host: str = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 for all, as there is no authentication yet"
    )
    grpc_port: Port = Field(8001, description="gRPC port; 0 takes any free one")
    metrics_port: Port = Field(
        8002, description="HTTP port of /metrics, /healthz and /readyz; 0 takes a free one"
    )
    port_file: Path | None = Field(None, description="write the ports in use to this file, as JSON")
    device: Device = Field(
        "auto", description="cuda refuses to start without CUDA; auto takes it if it is there"
    )
    allow_partial: bool = Field(
        False, description="serve the models that load even if others are broken, instead of exiting"
    )
    max_batch_rows: int = Field(256, ge=1, description="most rows of one model run")
    max_queue_rows: int = Field(65536, ge=1, description="rows that may wait, per model; more are refused")
    max_queue_delay: float = Field(
        0.0, ge=0, le=1, description="seconds to wait for a fuller batch while the model is idle"
    )
    max_message_bytes: int = Field(
        64 * 2**20, ge=1024, le=2**31 - 1, description="largest message taken or sent"
    )
    inference_threads: int = Field(
        0, ge=0, description="threads that run each model; 0: one per processor on the CPU, one on CUDA"
    )
    intra_op_threads: int = Field(
        0, ge=0, description="threads within one run; 0 shares the processors among the inference threads"
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
