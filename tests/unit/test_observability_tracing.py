"""Spans join up across processes; without tracing the headers pass through."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from omnibus.errors import ConfigError
from omnibus.observability.tracing import Tracing, make_provider, open_tracing, span_id_of
from omnibus.settings import Settings

pytestmark = pytest.mark.unit

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing(make_provider("tests", SimpleSpanProcessor(exporter)))


def test_spans_form_one_trace_when_headers_cross_processes(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.span("stage", PARENT, {"stage": "thinker"}) as before:
        pass
    with tracing.span("stage", before.headers, {"stage": "dit"}):
        pass

    first, second = exporter.get_finished_spans()
    assert f"{first.context.trace_id:032x}" == f"{second.context.trace_id:032x}" == PARENT["traceparent"][3:35]
    assert f"{first.parent.span_id:016x}" == PARENT["traceparent"][36:52]
    assert second.parent.span_id == first.context.span_id
    assert [dict(span.attributes) for span in (first, second)] == [{"stage": "thinker"}, {"stage": "dit"}]


def test_span_is_a_root_when_the_parent_is_malformed(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.span("stage", {"traceparent": "nonsense"}, {}) as made:
        assert made.headers["traceparent"].startswith("00-")
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
    with tracing.span("stage", PARENT, {}) as span:
        assert span.headers == PARENT
    tracing.close()


def test_exporting_tracing_opens_and_closes_when_an_endpoint_is_given() -> None:
    tracing = open_tracing("http://127.0.0.1:4317", "worker")
    assert tracing.provider is not None
    tracing.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_process_ends_soon_when_the_collector_takes_no_spans(protocol: str) -> None:
    program = (
        "import socket; from omnibus.observability.tracing import open_tracing\n"
        "with socket.create_server(('127.0.0.1', 0)) as hung:\n"
        f"    tracing = open_tracing(f'http://127.0.0.1:{{hung.getsockname()[1]}}', 'x', protocol={protocol!r})\n"
        "    with tracing.span('a', {}, {}):\n"
        "        pass\n"
        "    print('begun', flush=True)\n"
        "    tracing.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert process.wait(6.0) == 0


def test_config_error_when_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'omnibus\[otel\]'"):
        open_tracing("http://127.0.0.1:4317", "worker")


def test_span_links_to_one_that_another_process_made_by_what_it_is_of(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with tracing.span("process", PARENT, {}, span_id=span_id_of("r", 7, 1)):
        pass
    with tracing.span(
        "process", PARENT, {}, span_id=span_id_of("r", 7, 2), links={span_id_of("r", 7, 1): "redelivery"}
    ):
        pass
    first, second = exporter.get_finished_spans()
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert second.context.span_id != first.context.span_id
    assert span_id_of("r", 7, 1) != span_id_of("r", 71, "")


def test_past_span_is_under_the_one_under_way_and_none_where_nothing_is(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    tracing.past("payload get", 0.5, {})
    unsampled = {"traceparent": PARENT["traceparent"][:-1] + "0"}
    with tracing.span("stage", unsampled, {}):
        tracing.past("payload get", 0.5, {})
    assert exporter.get_finished_spans() == ()
    with tracing.span("stage", PARENT, {}) as stage:
        tracing.past("payload get", 0.5, {"n": 1})
    past, around = exporter.get_finished_spans()
    assert (past.parent.span_id, around.name) == (around.context.span_id, "stage")
    assert 0.4e9 < past.end_time - past.start_time < 0.6e9
    assert f"{around.context.span_id:016x}" in stage.headers["traceparent"]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (None, None)),
        ({"OMNIBUS_OTLP_ENDPOINT": "http://a:4317"}, ("http://a:4317", None)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4318"}, ("http://b:4318", None)),
        ({"OMNIBUS_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}, ("http://a", None)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("http://b", "grpc")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b", "OTEL_SDK_DISABLED": "true"}, (None, None)),
    ],
)
def test_endpoint_is_ours_or_opentelemetrys_own(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: tuple[str | None, str | None]
) -> None:
    for name in (
        "OMNIBUS_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_SDK_DISABLED",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Settings().tracing == found


def test_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match="grpc or http/protobuf"):
        open_tracing("http://127.0.0.1:4317", "worker", protocol="http/json")
