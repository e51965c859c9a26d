"""What `omnibus doctor` finds on a machine, and what it says to do about it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omnibus.broker.certificates import Authority
from omnibus.broker.nats_access import Access
from omnibus.cli import machine_findings
from omnibus.cli.machine_findings import certificate_findings
from omnibus.cli.port_finding import ANSWER_TIMEOUT, Finding
from omnibus.settings import Settings

pytestmark = pytest.mark.unit


def found(check: str, settings: Settings, role: str = "frontdoor") -> Finding:
    async def examined() -> list[Finding]:
        return [one async for one in machine_findings.machine_findings(settings, role)]

    (one,) = [one for one in asyncio.run(examined()) if one.check == check]
    return one


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_port_of_a_stranger_is_a_fault_of_a_front_door_alone(taken: int) -> None:
    settings = Settings(port=taken)
    one = found("port", settings)
    assert not one.ok
    assert one.text.endswith("choose another with --port")
    assert found("port", settings, "worker").ok


def test_free_port_is_none(taken: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    assert found("port", Settings(port=free)) == Finding("port", True, f"{free} on 127.0.0.1 is free")
    assert found("metrics port", Settings(metrics_port=taken)).ok, "what nobody needs is no fault"


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name is the library's
        """Keep quiet."""


class _Pages(_Quiet):
    """A server whose `/live` is well and whose `/metrics` never end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(ConnectionError):
            while self.path == "/metrics":
                self.wfile.write(b"x" * 65536)


class _Ours(_Quiet):
    """A server that answers as Omnibus does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"omnibus_requests_total 1.0\n")


@contextmanager
def serving(pages: Callable[..., BaseHTTPRequestHandler]) -> Iterator[int]:
    """A server of HTTP on a port of loopback, for as long as the context lasts."""
    with ThreadingHTTPServer(("127.0.0.1", 0), pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def served() -> Iterator[int]:
    with serving(_Pages) as port:
        yield port


def test_port_is_asked_directly_when_there_is_a_proxy(served: int, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{taken}")
    assert found("port", Settings(port=served)).text == f"Omnibus answers at 127.0.0.1:{served}"


@pytest.mark.timeout(20)
def test_metrics_port_is_of_a_stranger_when_its_page_never_ends(served: int) -> None:
    assert "it is not Omnibus that answers" in found("metrics port", Settings(metrics_port=served)).text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Long: ", b""], ids=["body", "head", "start"]
)
def test_metrics_port_is_of_a_stranger_within_one_deadline_when_its_page_drips(first: bytes) -> None:
    """A byte each 50 ms, for longer than anybody should wait: no single read of it takes long."""
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            caller, _ = server.accept()
            with caller, suppress(OSError):
                caller.sendall(first)
                for _ in range(400):
                    if gone.wait(0.05):
                        return
                    caller.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        started = time.monotonic()
        one = found("metrics port", Settings(metrics_port=int(server.getsockname()[1])))
        took = time.monotonic() - started
        gone.set()
        dripping.join()
    assert "it is not Omnibus that answers" in one.text
    assert took < ANSWER_TIMEOUT + 1.0


@pytest.mark.parametrize(
    ("check", "status"), [("port", 302), ("metrics port", 302), ("port", 308), ("metrics port", 301)]
)
def test_port_that_leads_elsewhere_is_a_strangers_and_says_where(check: str, status: int) -> None:
    with serving(_Ours) as ours:

        class Elsewhere(_Quiet):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Location", f"http://127.0.0.1:{ours}{self.path}?from=here\x1b[31m")
                self.end_headers()

        name = check.replace(" ", "_")
        assert found(check, Settings(**{name: ours})).text == f"Omnibus answers at 127.0.0.1:{ours}"  # type: ignore[arg-type]
        with serving(Elsewhere) as port:
            one = found(check, Settings(**{name: port}))  # type: ignore[arg-type]
    assert one.ok is (check != "port")
    path = "/live" if check == "port" else "/metrics"
    where = f"a redirect ({status}) to http://127.0.0.1:{ours}{path}?from=here[31m: choose another with --"
    assert f"it is not Omnibus that answers, but {where}{check.replace(' ', '-')}" in one.text


def test_port_of_a_server_that_speaks_no_http_is_a_strangers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            caller, _ = server.accept()
            with caller:
                caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                caller.recv(4096)

        greeting = threading.Thread(target=greet)
        greeting.start()
        one = found("port", Settings(port=int(server.getsockname()[1])))
        greeting.join()
    assert "it is not Omnibus that answers" in one.text


def test_shared_memory_that_is_too_small_says_how_to_give_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("shared memory", Settings(shared_memory=0)).ok
    monkeypatch.setattr(machine_findings, "_FEWEST_SHARED", 1 << 60)
    one = found("shared memory", Settings())
    assert not one.ok
    assert "--shm-size" in one.text


def test_gpus_are_asked_for_only_where_their_program_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("GPUs", Settings()).text == "none: engines run on the CPU"
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    one = found("GPUs", Settings())
    assert (one.ok, "no devices were found" in one.text) == (False, True)
    broken.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1, 81559 MiB'\n")
    assert found("GPUs", Settings()) == Finding("GPUs", True, "NVIDIA H100, 570.1, 81559 MiB")


def test_certificate_that_ends_soon_is_a_fault_that_says_what_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.make(tmp_path / "ca.pem", tmp_path / "ca.key")
    authority.issue("worker-0", tmp_path / "worker-0.pem", tmp_path / "worker-0.key")
    (tmp_path / "worker-0.nk").write_text("x")
    access = Access(credentials=tmp_path / "worker-0.nk")
    assert [one.ok for one in certificate_findings(access)] == [True, True]
    monkeypatch.setattr(machine_findings, "_DAYS_LEFT", 1000)
    authority_finding, own = certificate_findings(access)
    assert (authority_finding.ok, own.ok) == (True, False)
    assert f"omnibus nats credentials --dir {tmp_path}" in own.text


def test_certificate_that_is_none_is_a_fault_and_none_at_all_is_not(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    (one,) = certificate_findings(Access(credentials=tmp_path))
    assert not one.ok
    (none,) = certificate_findings(Access())
    assert none.ok
