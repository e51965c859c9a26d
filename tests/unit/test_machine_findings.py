"""What `omnibus doctor` finds on a machine, and what it says to do about it."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omnibus.broker.certificates import Authority
from omnibus.broker.nats_access import Access
from omnibus.cli import machine_findings
from omnibus.cli.machine_findings import Finding, certificate_findings
from omnibus.settings import Settings

pytestmark = pytest.mark.unit


def found(check: str, settings: Settings, role: str = "frontdoor") -> Finding:
    (one,) = [one for one in machine_findings.machine_findings(settings, role) if one.check == check]
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


class _Pages(BaseHTTPRequestHandler):
    """A server whose `/live` is well and whose `/metrics` never end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(ConnectionError):
            while self.path == "/metrics":
                self.wfile.write(b"x" * 65536)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name is the library's
        """Keep quiet."""


@pytest.fixture
def served() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


def test_port_is_asked_directly_when_there_is_a_proxy(served: int, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{taken}")
    assert found("port", Settings(port=served)).text == f"Omnibus answers at 127.0.0.1:{served}"


@pytest.mark.timeout(20)
def test_metrics_port_is_of_a_stranger_when_its_page_never_ends(served: int) -> None:
    assert "it is not Omnibus that answers" in found("metrics port", Settings(metrics_port=served)).text


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
