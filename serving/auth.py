"""Who may call what: tokens are asked for before a request is read."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc

from serving.errors import Forbidden, ServingError, Unauthenticated, status_of
from serving.metrics import Metrics
from serving.reloading import Reloaded
from serving.request_ids import METADATA_KEY, id_in_metadata, new_id
from serving.tokens import Role, Tokens

log = logging.getLogger(__name__)

# What changes the server rather than asks it. Any other RPC takes either role.
ADMINISTRATION = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
_BEARER = "bearer "
_HOW = "send the metadata 'authorization: Bearer TOKEN' or 'x-api-key: TOKEN'"

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


class Authenticator(grpc.aio.ServerInterceptor):
    """Lets through who shows a token that is good for the method.

    Parameters
    ----------
    tokens
        The tokens in force.
    methods
        ``service/method`` of everything that the server answers: what calls are counted under.
    open_services
        Services that anyone may call.
    metrics
        Where outcomes are counted.
    """

    def __init__(
        self,
        tokens: Reloaded[Tokens],
        methods: Collection[str],
        open_services: Collection[str],
        metrics: Metrics,
    ) -> None:
        self._tokens = tokens
        self._methods = frozenset(methods)
        self._open = frozenset(open_services)
        self._metrics = metrics
        self._outcomes = {
            outcome: metrics.authentications.labels(outcome)
            for outcome in ("accepted", "missing", "wrong", "forbidden")
        }

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        """Return the method's handler, or one that refuses the call."""
        method = handler_call_details.method.removeprefix("/")
        service, _, name = method.rpartition("/")
        if service in self._open:
            return await continuation(handler_call_details)
        outcome, error = self._judge(name, handler_call_details.invocation_metadata)
        self._outcomes[outcome].inc()
        if error is None:
            return await continuation(handler_call_details)
        return self._refusal(method, error)

    def _judge(self, name: str, metadata: Any) -> tuple[str, ServingError | None]:
        presented = presented_token(metadata)
        if presented is None:
            return "missing", Unauthenticated(f"this server asks for a token; {_HOW}")
        role = self._tokens.value.role(presented)
        if role is None:
            return "wrong", Unauthenticated("the token is none of this server's; it may have been replaced")
        if name in ADMINISTRATION and role is not Role.ADMIN:
            return "forbidden", Forbidden(f"{name} takes the role {Role.ADMIN}; this token has {role}")
        return "accepted", None

    def _refusal(self, method: str, error: ServingError) -> grpc.RpcMethodHandler:
        async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> None:
            start = time.perf_counter()
            call_id = id_in_metadata(context) or new_id()
            status = status_of(error, method, call_id)
            seconds = time.perf_counter() - start
            if method in self._methods:  # a caller cannot make new labels
                self._metrics.answered(method, status.code.name, seconds)
            call = {"method": method[:128], "code": status.code.name, "why": status.message}
            call |= {"request_id": call_id, "peer": context.peer()}
            log.debug("call", extra=call | {"seconds": round(seconds, 6)})
            await context.abort(status.code, status.message, ((METADATA_KEY, call_id),))

        # A handler of streams, whatever the method is: it is called before any message has come in, so the
        # request of a caller without a token is neither received whole, nor read, nor queued.
        return grpc.stream_stream_rpc_method_handler(refuse)


def presented_token(metadata: Any) -> str | None:
    """Return the token in a call's metadata, or ``None`` if there is none, or several that disagree."""
    found: set[str] = set()
    for key, value in metadata or ():
        if not isinstance(value, str):
            continue
        if key == "authorization":
            if value[: len(_BEARER)].lower() == _BEARER:
                found.add(value[len(_BEARER) :].strip())
        elif key == "x-api-key":
            found.add(value.strip())
    return found.pop() if len(found) == 1 else None
