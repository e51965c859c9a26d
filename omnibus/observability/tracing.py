"""Traces across processes: OpenTelemetry where it is installed and asked for, nothing otherwise.

A request carries its W3C trace context as headers (`traceparent`, `tracestate`), so a span's parent may live in another
process. Install the extra `otel` to export spans; without it headers still pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omnibus.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Headers = Mapping[str, str]


class Tracing:
    """Makes spans of one OpenTelemetry provider, which it shuts down; without one it passes headers on.

    Attributes are bounded values: a stage, a pipeline, a request's id; never a prompt.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider
        if provider is None:
            return
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 the extra `otel`
            TraceContextTextMapPropagator,
        )

        self._tracer = provider.get_tracer("omnibus")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, parent: Headers, attributes: Headers) -> Iterator[Headers]:
        """A span around a block, under the span that `parent` names.

        The block gets the headers that a child in another process needs. An exception marks the span as failed.
        """
        if self.provider is None:
            yield parent
            return
        context = self._propagator.extract(parent)
        with self._tracer.start_as_current_span(name, context=context, attributes=dict(attributes)):
            headers: dict[str, str] = {}
            self._propagator.inject(headers)
            yield headers

    def close(self) -> None:
        """Export what is left; idempotent."""
        if self.provider is not None:
            self.provider.shutdown()


def open_tracing(endpoint: str | None, service: str) -> Tracing:
    """Tracing that exports over OTLP/gRPC to `endpoint`, or none without one.

    Raises ConfigError when an endpoint is given and the extra `otel` is not installed.
    """
    if endpoint is None:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("traces need OpenTelemetry: pip install 'omnibus[otel]'", param="otlp_endpoint") from error
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)
