"""The id by which one call is found again: in the caller's log, in the server's, in the reply.

A message's own id comes first (``request_id``; ``id`` in the Open Inference Protocol), and the reply repeats
it. Then the metadata ``x-request-id``, which proxies set; the reply's trailers repeat it. A call with neither
gets one when there is something to tell: in the trailers of a failure, and in the log.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor

METADATA_KEY = "x-request-id"
MAX_LENGTH = 128

# Unique over all processes, and cheaper than a new random number for every call.
_PREFIX = uuid.uuid4().hex[:16]
_NUMBERS = itertools.count(1)


def id_reader(message: Descriptor | None) -> Callable[[Any], str]:
    """Return what reads the own id of messages of one type; it returns "" if they have none.

    ``None`` stands for a stream, which has no id before its messages.
    """
    names = message.fields_by_name if message is not None else ()
    name = next((name for name in ("request_id", "id") if name in names), None)
    if name is None:
        return lambda request: ""

    def read(request: Any) -> str:
        text = getattr(request, name, "")  # what could not be decoded has none
        return printable(text) if text else ""

    return read


def id_in_metadata(context: grpc.aio.ServicerContext) -> str:
    """Return the id in a call's metadata; empty if there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == METADATA_KEY and isinstance(value, str):
            return printable(value)
    return ""


def new_id() -> str:
    """Return an id for a call that came without."""
    return f"{_PREFIX}-{next(_NUMBERS)}"


def printable(text: str) -> str:
    """Return ``text`` fit for a log and for metadata: ASCII without control characters, 128 at most."""
    text = text[:MAX_LENGTH]
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return text.strip()
