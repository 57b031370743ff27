"""The server's settings: command line, then environment, then YAML file, then these defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from serving.engine import Device
from serving.logs import LogFormat, LogLevel

ENV_PREFIX = "NVISA_SERVE_"
# Kubernetes sets these in every pod of a namespace that has a Service called nvisa-serve.
_SERVICE_LINK = re.compile(rf"^{ENV_PREFIX}(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?$")

Port = Annotated[int, Field(ge=0, le=65535)]


class InvalidSettings(ValueError):
    """The settings cannot be used; the message names the setting, what is wrong and where it came from."""


class ServerSettings(BaseSettings):
    """Serve NVISA bundles over gRPC.

    Every flag is also an environment variable, NVISA_SERVE_ and the name in capitals with underscores,
    and a key of the YAML file that --config names.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        cli_prog_name="nvisa-serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    model_repository: Path = Field(description="folder of bundles, <name>/<version>/")
    config: Path | None = Field(None, description="YAML file with settings; its keys are these flags' names")
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
    log_format: LogFormat = Field("auto", description="auto: text on a terminal, JSON elsewhere")
    log_level: LogLevel = Field("info", description="debug also logs every call")

    @field_validator("model_repository", "config", "port_file")
    @classmethod
    def _expand_home(cls, path: Path | None) -> Path | None:
        return path.expanduser() if path is not None else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment above what was read from the file; the command line comes on top."""
        return env_settings, init_settings


def load_settings(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> ServerSettings:
    """Read the settings from the command line, the environment and the YAML file.

    Parameters
    ----------
    arguments
        Without the program's name; those of this process if ``None``.
    environment
        Where to look for names that are no setting; that of this process if ``None``.

    Raises
    ------
    InvalidSettings
        If a setting is unknown, missing or out of range, or the file cannot be read.
    SystemExit
        If ``--help`` was asked for.
    """
    environment = os.environ if environment is None else environment
    _refuse_unknown_environment(environment)
    try:
        command_line = CliSettingsSource[Any](
            ServerSettings, cli_parse_args=list(arguments) if arguments is not None else True
        )
        path = command_line().get("config") or environment.get(f"{ENV_PREFIX}CONFIG")
        return ServerSettings(_cli_settings_source=command_line, **(_read_yaml(Path(path)) if path else {}))
    except SettingsError as error:
        raise InvalidSettings(str(error).removeprefix("error parsing CLI: ")) from error
    except ValidationError as error:
        raise InvalidSettings("; ".join(_explain(dict(each)) for each in error.errors())) from error


def _explain(error: dict[str, Any]) -> str:
    name = str(error["loc"][0]).replace("_", "-") if error["loc"] else "settings"
    if error["type"] == "missing":
        return f"--{name} is missing; pass it, or set {ENV_PREFIX}{name.replace('-', '_').upper()}"
    if error["type"] == "extra_forbidden":
        return f"there is no setting {name!r}"
    return f"--{name}: {error['msg']}, got {error['input']!r}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.expanduser().read_text())
    except OSError as error:
        raise InvalidSettings(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidSettings(f"--config {path}: expected a mapping, got {type(content).__name__}")
    settings = {str(key).replace("-", "_"): value for key, value in content.items()}
    unknown = sorted(set(settings) - (set(ServerSettings.model_fields) - {"config"}))
    if unknown:
        raise InvalidSettings(f"--config {path}: there is no setting {', '.join(map(repr, unknown))}")
    return settings


def _refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    known = {ENV_PREFIX + name.upper() for name in ServerSettings.model_fields}
    unknown = sorted(
        name
        for name in environment
        if name.startswith(ENV_PREFIX) and name not in known and not _SERVICE_LINK.match(name)
    )
    if unknown:
        raise InvalidSettings(f"there is no setting for the environment variable {', '.join(unknown)}")
