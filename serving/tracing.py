"""OpenTelemetry traces: one span for a call, and under it its wait and its runs of the model.

Imported only if tracing is asked for, so a server without it neither needs the packages nor pays for them.
Everything but the switch itself is set by the standard ``OTEL_*`` environment variables: the collector
(``OTEL_EXPORTER_OTLP_ENDPOINT``), sampling (``OTEL_TRACES_SAMPLER``), what this process is called
(``OTEL_SERVICE_NAME``), and how callers name their trace (``OTEL_PROPAGATORS``; ``traceparent`` by default).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import grpc
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from serving.call_queue import Call
from serving.deadlines import is_at_deadline
from serving.start_error import StartError

# Codes that are the server's fault; the others are ordinary answers to what a caller did.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
_EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}


class Tracing:
    """Makes spans and hands them to a provider.

    Parameters
    ----------
    provider
        Where spans go; `from_environment` makes one as the environment says.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("nvisa.serving")

    @classmethod
    def from_environment(cls) -> Tracing:
        """Trace to where the ``OTEL_*`` variables say.

        Raises
        ------
        StartError
            If a variable's value is not known, or the package for it is not installed.
        """
        # The environment's name for the service wins over ours.
        named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {SERVICE_NAME: "nvisa-serve"})
        try:
            provider = TracerProvider(resource=resource)
        except ValueError as error:
            raise StartError(f"--tracing: the OTEL_* variables cannot be used: {error}") from error
        exporter = _exporter()
        if exporter is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def traced(self, method: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``answer``, a handler of the RPC ``method``, with a span around every call."""
        service, _, name = method.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

        async def traced_answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            carrier = {
                key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
            }
            with self._tracer.start_as_current_span(
                method,
                context=propagate.extract(carrier),
                kind=SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,  # the log has it; a trace may go to people who may not read that
                set_status_on_exception=False,
            ) as span:
                code = "OK"
                try:
                    return await answer(request, context)
                except asyncio.CancelledError:
                    at_deadline = is_at_deadline(context.time_remaining())
                    code = "DEADLINE_EXCEEDED" if at_deadline else "CANCELLED"
                    raise
                except Exception:  # of context.abort, which has set the code
                    code = _name_of(context.code())
                    raise
                finally:
                    span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
                    if code in _FAULTS:
                        span.set_status(Status(StatusCode.ERROR, code))

        return traced_answer

    def of_model(self, model: str, version: int) -> Callable[[Call], None]:
        """Return what makes the spans ``queue`` and ``model`` of one call's way through a batcher.

        It is called once the call has ended, in the call's own task, so its spans hang under the RPC's.
        """
        labels: dict[str, Any] = {"nvisa.model": model, "nvisa.model_version": version}

        def ended(call: Call) -> None:
            if not trace.get_current_span().is_recording():
                return
            now_ns = time.perf_counter_ns()
            to_epoch = time.time_ns() - now_ns
            runs = call.runs or []
            queued_until = min((run.started_ns for run in runs), default=now_ns)
            queue = self._tracer.start_span(
                "queue",
                start_time=call.arrived_ns + to_epoch,
                attributes=labels | {"nvisa.rows": len(call.x), "nvisa.reached_model": bool(runs)},
            )
            queue.end(queued_until + to_epoch)
            for run in runs:
                batch = {"nvisa.batch.rows": run.rows, "nvisa.batch.padding_rows": run.padding}
                span = self._tracer.start_span(
                    "model", start_time=run.started_ns + to_epoch, attributes=labels | batch
                )
                if run.error is not None:
                    span.set_status(Status(StatusCode.ERROR, type(run.error).__name__))
                span.end(run.finished_ns + to_epoch)

        return ended

    def close(self) -> None:
        """Send what has not been sent. Blocks, for as long as the collector takes."""
        self._provider.shutdown()


class TraceIds(logging.Filter):
    """Adds ``trace_id`` and ``span_id`` to what is logged within a span."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the ids; keep every record."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id = trace.format_trace_id(context.trace_id)
            record.span_id = trace.format_span_id(context.span_id)
        return True


def _exporter() -> SpanExporter | None:
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() or "otlp"
    if kind == "none":
        return None
    if kind == "console":
        return ConsoleSpanExporter()
    if kind != "otlp":
        raise StartError(f"OTEL_TRACES_EXPORTER is {kind!r}; set it to otlp, console or none")
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    ).strip()
    if protocol not in _EXPORTERS:
        raise StartError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; set it to {' or '.join(_EXPORTERS)}")
    try:
        exporter: SpanExporter = import_module(_EXPORTERS[protocol]).OTLPSpanExporter()
    except ImportError as error:
        package = f"opentelemetry-exporter-otlp-proto-{protocol.partition('/')[0]}"
        raise StartError(
            f"traces by OTLP over {protocol} need a package that is not there: pip install {package}"
        ) from error
    return exporter


def _name_of(code: Any) -> str:
    """Return the name of a status code, which gRPC gives as a number or as itself."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    names = {status.value[0]: status.name for status in grpc.StatusCode}
    return names.get(code, "UNKNOWN")
