"""A real receiver of OTLP over HTTP: it decodes the messages of `opentelemetry-proto` that exporters send."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it arrived."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    """Empty of a root."""
    start: float
    end: float
    kind: int
    failed: bool
    links: tuple[str, ...]
    attributes: dict[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Collector:
    """The spans that have arrived so far."""

    url: str
    spans: list[Received] = field(default_factory=list)

    def of(self, trace: str) -> list[Received]:
        """Those of one trace, in the order of their beginnings."""
        return sorted((one for one in tuple(self.spans) if one.trace == trace), key=lambda one: one.start)

    def tree(self, trace: str, outside: str = "") -> tuple[Received, dict[str, list[Received]]]:
        """The root of a trace, whose parent is `outside`, and the children of each span; fails for any other root."""
        found = self.of(trace)
        known = {one.span for one in found}
        roots = [one for one in found if one.parent not in known]
        assert [one.parent for one in roots] == [outside], [(one.name, one.parent) for one in roots]
        children: dict[str, list[Received]] = {}
        for one in found:
            children.setdefault(one.parent, []).append(one)
        return roots[0], children


@contextmanager
def collector() -> Iterator[Collector]:
    """A receiver on a free port, for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            assert self.path == "/v1/traces"
            found.spans += _spans(ExportTraceServiceRequest.FromString(data))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing: the tests say what is wrong."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def _spans(message: ExportTraceServiceRequest) -> Iterator[Received]:
    for of_resource in message.resource_spans:
        service = str(_attributes(of_resource.resource.attributes).get("service.name", ""))
        for of_scope in of_resource.scope_spans:
            for one in of_scope.spans:
                yield Received(
                    service, one.name, one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex(),
                    one.start_time_unix_nano / 1e9, one.end_time_unix_nano / 1e9, one.kind, one.status.code == 2,
                    tuple(link.span_id.hex() for link in one.links), _attributes(one.attributes),
                )  # fmt: skip


def _attributes(pairs: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in pairs:  # type: ignore[attr-defined] # a repeated field
        assert isinstance(pair, KeyValue)
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind) if kind else None
    return found
