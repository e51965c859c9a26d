"""Traces across processes: OpenTelemetry where it is installed and asked for, nothing otherwise.

A request carries its W3C trace context as headers (`traceparent`, `tracestate`), so a span's parent may live in another
process. Install the extra `otel` to export spans; without it headers still pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from omnibus.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Headers = Mapping[str, str]


class Tracing(Protocol):
    """Makes spans. Attributes are bounded values: a stage, a pipeline, a request's id; never a prompt."""

    def span(self, name: str, parent: Headers, attributes: Headers) -> AbstractContextManager[Headers]:
        """A span around a block, under the span that `parent` names.

        The block gets the headers that a child in another process needs. An exception marks the span as failed.
        """
        ...

    def close(self) -> None:
        """Export what is left; idempotent."""


class NoTracing:
    """Passes the parent's headers on."""

    @contextmanager
    def span(self, name: str, parent: Headers, attributes: Headers) -> Iterator[Headers]:  # noqa: ARG002 the protocol's
        yield parent

    def close(self) -> None:
        return


class OpenTelemetryTracing:
    """Spans of one provider, which this object shuts down."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 the extra `otel`
            TraceContextTextMapPropagator,
        )

        self._provider = provider
        self._tracer = provider.get_tracer("omnibus")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, parent: Headers, attributes: Headers) -> Iterator[Headers]:
        context = self._propagator.extract(parent)
        with self._tracer.start_as_current_span(name, context=context, attributes=dict(attributes)):
            headers: dict[str, str] = {}
            self._propagator.inject(headers)
            yield headers

    def close(self) -> None:
        self._provider.shutdown()


def open_tracing(endpoint: str | None, service: str) -> Tracing:
    """Tracing that exports over OTLP/gRPC to `endpoint`, or none without one.

    Raises ConfigError when an endpoint is given and the extra `otel` is not installed.
    """
    if endpoint is None:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("traces need OpenTelemetry: pip install 'omnibus[otel]'", param="otlp_endpoint") from error
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return OpenTelemetryTracing(provider)
