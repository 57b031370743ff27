"""Logs: one JSON object per line for machines, one readable line for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

_STANDARD = set(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what was logged beside the message, by ``extra=``; empty values are left out."""
    return {
        key: value for key, value in vars(record).items() if key not in _STANDARD and value not in ("", None)
    }


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and the ``extra`` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format ``record``."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= fields_of(record)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """``12:00:00.000 info    message  key=value``, with the traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Format ``record``."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        pairs = "".join(f"  {key}={value}" for key, value in fields_of(record).items())
        line = f"{time} {record.levelname.lower():7} {record.getMessage()}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up_logs(style: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Send all logs to ``stream`` (standard error), as text on a terminal and as JSON elsewhere."""
    stream = stream or sys.stderr
    as_text = style == "text" or (style == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Debug level is for this server; the event loop's own notes would drown it.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
