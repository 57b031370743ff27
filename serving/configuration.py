"""Settings from the command line, the environment and a YAML file, in that order."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

SettingsT = TypeVar("SettingsT", bound="LayeredSettings")


class InvalidSettings(ValueError):
    """The settings cannot be used; the message names the setting and what is wrong with it."""


def _split_names(value: object) -> object:
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    return tuple(name.strip() for part in parts for name in str(part).split(",") if name.strip())


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]


class LayeredSettings(BaseSettings):
    """Base of settings classes read by `load_settings`; subclasses set ``env_prefix`` and ``cli_prog_name``.

    Attributes
    ----------
    config
        The YAML file; its keys are the names of the flags, with dashes or underscores.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    config: Path | None = Field(None, description="YAML file with settings; its keys are these flags' names")

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        # No shell has seen what comes from a file or the environment, or as --flag=~/path.
        return value.expanduser() if isinstance(value, Path) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment above the file, which comes as arguments; the command line goes on top."""
        return env_settings, init_settings


def load_settings(kind: type[SettingsT], arguments: Sequence[str] | None = None) -> SettingsT:
    """Read the settings ``kind``.

    Parameters
    ----------
    arguments
        Without the program's name; those of this process if ``None``.

    Raises
    ------
    InvalidSettings
        If a setting is unknown, missing or out of range, or the file cannot be read.
    SystemExit
        If ``--help`` was asked for.
    """
    prefix = kind.model_config["env_prefix"]
    known = {prefix + name.upper() for name in kind.model_fields}
    # Kubernetes sets these in every pod of a namespace that has a Service of such a name.
    service_link = re.compile(rf"{prefix}(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?")
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(prefix) and name not in known and not service_link.fullmatch(name)
    )
    if unknown:
        raise InvalidSettings(f"there is no setting for the environment variable {', '.join(unknown)}")
    try:
        command_line = CliSettingsSource[Any](
            kind, cli_parse_args=list(arguments) if arguments is not None else True
        )
        flags = command_line()
        path = flags.get("config") or os.environ.get(f"{prefix}CONFIG")
        from_file = _read_yaml(kind, Path(path)) if path else {}
        return kind(_cli_settings_source=command_line, **from_file)
    except SettingsError as error:
        raise InvalidSettings(str(error).removeprefix("error parsing CLI: ")) from error
    except ValidationError as error:
        explained = (_explain(prefix, flags, path, dict(each)) for each in error.errors())
        raise InvalidSettings("; ".join(explained)) from error


def _explain(prefix: str, flags: dict[str, Any], path: Any, error: dict[str, Any]) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    key = str(error["loc"][0])
    flag, variable = f"--{key.replace('_', '-')}", prefix + key.upper()
    if error["type"] == "missing":
        return f"{flag} is missing; pass it, or set {variable}"
    origin = "" if key in flags else f" (from {variable if variable in os.environ else f'--config {path}'})"
    return f"{flag}: {error['msg']}, got {error['input']!r}{origin}"


def _read_yaml(kind: type[LayeredSettings], path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.expanduser().read_text())
    except OSError as error:
        raise InvalidSettings(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidSettings(
            f"--config {path}: expected a mapping of settings, got {type(content).__name__}"
        )
    settings = {str(key).replace("-", "_"): value for key, value in content.items()}
    if len(settings) < len(content):
        raise InvalidSettings(f"--config {path}: a setting is there twice, with dashes and with underscores")
    unknown = sorted(set(settings) - set(kind.model_fields) | ({"config"} & set(settings)))
    if unknown:
        raise InvalidSettings(f"--config {path}: there is no setting {', '.join(map(repr, unknown))}")
    return settings
