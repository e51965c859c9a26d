"""Spans join up across processes; without tracing the headers pass through."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from omnibus.errors import ConfigError
from omnibus.observability.tracing import Tracing, open_tracing

pytestmark = pytest.mark.unit

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def test_spans_form_one_trace_when_headers_cross_processes(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.span("stage", PARENT, {"stage": "thinker"}) as headers:
        pass
    with tracing.span("stage", headers, {"stage": "dit"}):
        pass

    first, second = exporter.get_finished_spans()
    assert f"{first.context.trace_id:032x}" == f"{second.context.trace_id:032x}" == PARENT["traceparent"][3:35]
    assert f"{first.parent.span_id:016x}" == PARENT["traceparent"][36:52]
    assert second.parent.span_id == first.context.span_id
    assert [dict(span.attributes) for span in (first, second)] == [{"stage": "thinker"}, {"stage": "dit"}]


def test_span_is_a_root_when_the_parent_is_malformed(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.span("stage", {"traceparent": "nonsense"}, {}) as headers:
        assert headers["traceparent"].startswith("00-")
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_span_is_failed_when_the_block_raises(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(KeyError), tracing.span("stage", {}, {}):
        {}["broken"]
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok


def test_headers_pass_through_when_nothing_is_traced() -> None:
    tracing = open_tracing(None, "worker")
    assert tracing.provider is None
    with tracing.span("stage", PARENT, {}) as headers:
        assert headers == PARENT
    tracing.close()


def test_exporting_tracing_opens_and_closes_when_an_endpoint_is_given() -> None:
    tracing = open_tracing("http://127.0.0.1:4317", "worker")
    assert tracing.provider is not None
    tracing.close()


def test_config_error_when_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'omnibus\[otel\]'"):
        open_tracing("http://127.0.0.1:4317", "worker")
