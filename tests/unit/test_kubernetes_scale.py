"""A Deployment's scale, against a server of the two calls of Kubernetes' API that are made."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omnibus.client.autoscaler import Autoscaler
from omnibus.client.kubernetes_scale import ClusterRefused, DeploymentScale
from omnibus.errors import ConfigError
from omnibus.registry.scaling import ScalePolicy

pytestmark = pytest.mark.unit
PATH = "/apis/apps/v1/namespaces/prod/deployments/omni-dit/scale"


@dataclass
class Api:
    """What the API has, and what it was asked for."""

    url: str = ""
    replicas: int = 0
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    """Verb, content type and authorization of each."""


@pytest.fixture
def api() -> Iterator[Api]:
    found = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_PATCH(self) -> None:
            change = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.replicas = change["spec"]["replicas"]
            self._answer()

        def _answer(self) -> None:
            found.calls.append((self.command, self.headers["Content-Type"], self.headers.get("Authorization", "")))
            is_known = self.path == PATH
            body = json.dumps(
                {"kind": "Scale", "spec": {"replicas": found.replicas}} if is_known else {"message": "not found"}
            )
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


async def test_deployment_follows_the_lag_from_zero_and_back_and_is_written_only_when_it_changes(
    api: Api, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("sesame\n")
    deployment = DeploymentScale(api=api.url, namespace="prod", name="omni-dit", token=tmp_path / "token")
    lags = iter([0, 5, 5, 0, 0])

    async def lag() -> int:
        return next(lags)

    scaler = Autoscaler("dit", ScalePolicy(most=3, lag=2, cooldown=10.0), lag, deployment.set)
    found = []
    for now in (0.0, 1.0, 2.0, 3.0, 13.0):
        await scaler.look(now)
        found.append(api.replicas)
    assert found == [0, 3, 3, 3, 0]
    written = [call for call in api.calls if call[0] == "PATCH"]
    assert written == [("PATCH", "application/merge-patch+json", "Bearer sesame")] * 2


async def test_replicas_that_run_already_have_a_cooldown_when_the_scaler_is_started_again(api: Api) -> None:
    deployment = DeploymentScale.in_cluster("omni-dit", namespace="prod", api=api.url)
    api.replicas = 2

    async def nothing() -> int:
        return 0

    scaler = Autoscaler(
        "dit", ScalePolicy(most=3, cooldown=10.0), nothing, deployment.set, running=await deployment.get()
    )
    found = []
    for now in (0.0, 9.0, 10.0):
        await scaler.look(now)
        found.append(api.replicas)
    assert found == [2, 2, 0]


async def test_number_that_somebody_else_has_set_is_set_again(api: Api) -> None:
    deployment = DeploymentScale.in_cluster("omni-dit", namespace="prod", api=api.url)
    await deployment.set(2)
    api.replicas = 9
    await deployment.set(2)
    assert await deployment.get() == 2


async def test_refusal_says_what_was_asked_for_and_why(api: Api) -> None:
    with pytest.raises(ClusterRefused, match=r"GET .*/deployments/other/scale: 404 .*not found"):
        await DeploymentScale(api=api.url, namespace="prod", name="other").set(1)
    with pytest.raises(ClusterRefused, match="refused"):
        await DeploymentScale(api="http://127.0.0.1:9", namespace="prod", name="other").set(1)


async def test_scaler_outlives_a_token_that_is_away_and_an_answer_that_is_no_http(api: Api, tmp_path: Path) -> None:
    lost = DeploymentScale(api=api.url, namespace="prod", name="omni-dit", token=tmp_path / "token")
    with pytest.raises(ClusterRefused, match="token"):
        await lost.get()

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.org ESMTP\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ClusterRefused, match="220"):
            await DeploymentScale(api=f"http://127.0.0.1:{port}", namespace="prod", name="omni-dit").get()


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_token_goes_nowhere_else_when_an_answer_redirects(api: Api, tmp_path: Path, status: int) -> None:
    (tmp_path / "token").write_text("sesame\n")

    async def redirect(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} Elsewhere\r\nLocation: {api.url}{PATH}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(redirect, "127.0.0.1") as server:
        away = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        deployment = DeploymentScale(api=away, namespace="prod", name="omni-dit", token=tmp_path / "token")
        with pytest.raises(ClusterRefused, match=f"GET .*: {status}"):
            await deployment.set(1)
    assert api.calls == []


def test_cluster_is_to_be_named_outside_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="--kube-api"):
        DeploymentScale.in_cluster("omni-dit")
