"""Traces across processes: OpenTelemetry where it is installed and asked for, nothing otherwise.

A request carries its W3C trace context as headers (`traceparent`, `tracestate`), so a span's parent may live in another
process. Install the extra `otel` to export spans; without it headers still pass through unchanged. Invariant: where no provider
is open, a hot path pays for one look at `provider`, and makes no span.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from omnibus.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link
    from opentelemetry.trace import Span as OtelSpan

Headers = Mapping[str, str]
Attributes = Mapping[str, str | int | float | bool | tuple[str, ...]]
TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C trace context: in HTTP, in NATS headers, and in every envelope."""
_HTTP_PORT = ":4318"
"""The port on which collectors take OTLP over HTTP."""
_CLOSE_TIMEOUT = 2.0
"""Seconds that the last spans have to leave in: a process that ends does not wait for a collector that is away."""
_wanted_id: ContextVar[int | None] = ContextVar("wanted_span_id", default=None)


def span_id_of(*parts: object) -> int:
    """The id of the span of what these parts name, the same in every process: others may link to a span that they never saw."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") or 1


class ActiveSpan:
    """A span that is under way; without one of OpenTelemetry's it passes the parent's headers on."""

    __slots__ = ("_span", "headers")

    def __init__(self, headers: Headers, span: OtelSpan | None = None) -> None:
        self.headers, self._span = headers, span
        """Headers that a child in another process needs."""

    def note(self, attributes: Attributes) -> None:
        """Add attributes that are known now."""
        if self._span is not None:
            self._span.set_attributes(dict(attributes))

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, error_type: str, message: str = "") -> None:
        """It failed without an exception that leaves its block."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode  # noqa: PLC0415 the extra `otel`

            self._span.set_attribute("error.type", error_type)
            self._span.set_status(StatusCode.ERROR, message)


class Tracing:
    """Makes spans of one OpenTelemetry provider, which it shuts down; without one it passes headers on.

    Attributes are bounded values: a stage, a pipeline, a request's id; never a prompt.
    """

    def __init__(self, provider: TracerProvider | None = None, exporter: SpanExporter | None = None) -> None:
        """`exporter` is where the spans of the provider leave, if they do."""
        self.provider, self._exporter = provider, exporter
        if provider is None:
            return
        from opentelemetry import trace  # noqa: PLC0415 the extra `otel`
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._tracer, self._api = provider.get_tracer("omnibus"), trace
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self, name: str, parent: Headers, attributes: Attributes, *,
        kind: str = "internal", span_id: int | None = None, links: Mapping[int, str] | None = None,
    ) -> Iterator[ActiveSpan]:  # fmt: skip
        """A span around a block, under the span that `parent` names; an exception marks it as failed.

        `span_id` is that of `span_id_of`; `links` are other spans of the same trace by theirs, and what they are.
        """
        if self.provider is None:
            yield ActiveSpan(parent)
            return
        context = self._propagator.extract(parent)
        token = _wanted_id.set(span_id)
        try:
            made = self._tracer.start_span(
                name, context, self._api.SpanKind[kind.upper()], dict(attributes), self._links(context, links or {})
            )
        finally:
            _wanted_id.reset(token)
        with self._api.use_span(made, end_on_exit=True):
            headers: dict[str, str] = {}
            self._propagator.inject(headers)
            yield ActiveSpan(headers, made)

    def past(
        self,
        name: str,
        seconds: float,
        attributes: Attributes,
        *,
        parent: Headers | None = None,
        kind: str = "internal",
    ) -> None:
        """A span of what took the last `seconds`, under `parent`, or the span under way; none where neither is recorded."""
        if self.provider is None:
            return
        context = self._propagator.extract(parent) if parent is not None else None
        if not self._api.get_current_span(context).get_span_context().trace_flags.sampled:
            return
        now = time.time_ns()
        began = now - int(max(seconds, 0.0) * 1e9)
        kinds = self._api.SpanKind[kind.upper()]
        self._tracer.start_span(name, context, kinds, dict(attributes), start_time=began).end(now)

    def close(self) -> None:
        """Export what is left, as far as the collector takes it within `_CLOSE_TIMEOUT`; idempotent. Blocks."""
        if self.provider is None:
            return
        # A shutdown waits for half a minute of retries, and has no shorter timeout.
        closing = threading.Thread(target=self.provider.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT)
        if closing.is_alive() and self._exporter is not None:
            self._exporter.shutdown()  # a call of gRPC that is under way holds up the interpreter's end

    def _links(self, context: Any, links: Mapping[int, str]) -> list[Link]:
        parent = self._api.get_current_span(context).get_span_context()
        if not parent.is_valid:
            return []
        flags = parent.trace_flags
        return [
            self._api.Link(
                self._api.SpanContext(parent.trace_id, one, is_remote=True, trace_flags=flags), {"omnibus.link": what}
            )
            for one, what in links.items()
        ]


def make_provider(service: str, processor: SpanProcessor) -> TracerProvider:
    """A provider whose spans have the ids that `Tracing.span` is given; raises ImportError without the extra `otel`."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415

    class Ids(RandomIdGenerator):
        def generate_span_id(self) -> int:
            return _wanted_id.get() or int(super().generate_span_id())

    resource = Resource.create({"service.name": service})
    made = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)  # `Tracing.close` has an end
    made.add_span_processor(processor)
    return made


def open_tracing(endpoint: str | None, service: str, *, protocol: str | None = None) -> Tracing:
    """Tracing that exports over OTLP to `endpoint`, or none without one.

    `protocol` is `grpc` or `http/protobuf`, the latter by default for port 4318. Sampling, batches and further headers are as
    OpenTelemetry's own variables say. Raises ConfigError when an endpoint is given and the extra `otel` is not installed.
    """
    if endpoint is None:
        return Tracing()
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        exporter = _exporter(endpoint, protocol or ("http/protobuf" if _HTTP_PORT in endpoint else "grpc"))
        return Tracing(make_provider(service, BatchSpanProcessor(exporter)), exporter)
    except ImportError as error:
        raise ConfigError("traces need OpenTelemetry: pip install 'omnibus[otel]'", param="otlp_endpoint") from error


def _exporter(endpoint: str, protocol: str) -> Any:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc  # noqa: PLC0415

        return over_grpc.OTLPSpanExporter(endpoint=endpoint)
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as over_http  # noqa: PLC0415

        path = "" if endpoint.rstrip("/").endswith("/v1/traces") else "/v1/traces"
        return over_http.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}{path}")
    raise ConfigError(f"OTLP goes over grpc or http/protobuf, not {protocol!r}", param="otlp_protocol")
