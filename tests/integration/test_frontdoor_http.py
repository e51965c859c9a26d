"""HTTP's own rules: methods, addresses, pages of other origins."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.frontdoor.context import Options
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

PAGE = "https://page.example"
OPTIONS = Options(api_keys=("admin:secret",), allowed_origins=(PAGE,), allowed_methods=("GET", "POST"))


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, omni_sim(pipeline), OPTIONS, workers=False) as made:
        yield made


@pytest.mark.parametrize("path", ["/live", "/health", "/ready", "/version", "/metrics", "/v1/models", "/openapi.json"])
async def test_head_is_answered_as_get_without_a_body(front_door: Front, path: str) -> None:
    answer = await front_door.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/live/", "/ready//", "/v1/models/", "/is_paused/", "/docs/"])
async def test_a_slash_at_the_end_changes_nothing(front_door: Front, path: str) -> None:
    answer = await front_door.http.get(path, follow_redirects=False)
    plain = await front_door.http.get(path.rstrip("/"))
    assert (answer.status_code, answer.content) == (plain.status_code, plain.content)
    assert answer.status_code != 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/live", "GET, HEAD"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/chat/completions", "POST"),
        ("PATCH", "/v1/requests/abc", "DELETE, GET, HEAD"),
        ("HEAD", "/pause", "POST"),
        ("PATCH", "/v1/videos/sync", "POST"),
        ("PATCH", "/v1/videos/batch", "DELETE, GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_a_405_that_says_which_are_right(
    front_door: Front, method: str, path: str, allowed: str
) -> None:
    answer = await front_door.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def _preflight(front_door: Front, origin: str, method: str = "POST") -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization",
    }
    async with httpx.AsyncClient(base_url=front_door.server.url) as browser:  # it sends no key with this
        return await browser.options("/v1/chat/completions", headers=asked)


async def test_a_page_of_an_allowed_origin_may_call_with_a_key(front_door: Front) -> None:
    preflight = await _preflight(front_door, PAGE)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    called = await front_door.http.get("/v1/models", headers={"Origin": PAGE})
    assert called.headers["access-control-allow-origin"] == PAGE
    assert "X-Request-Id" in called.headers["access-control-expose-headers"]
    refused = await front_door.http.get("/v1/models", headers={"Origin": PAGE, "Authorization": "Bearer guess"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_a_page_of_another_origin_or_with_another_method_may_not(front_door: Front) -> None:
    for answer in (await _preflight(front_door, "https://other.example"), await _preflight(front_door, PAGE, "DELETE")):
        assert answer.status_code == 400
    called = await front_door.http.get("/v1/models", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in called.headers


async def test_no_page_may_call_when_no_origin_is_allowed(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), workers=False) as front_door:
        assert "access-control-allow-origin" not in (await _preflight(front_door, PAGE)).headers


async def test_a_sent_request_id_comes_back_and_the_request_keeps_its_own(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, omni_sim(pipeline)) as front_door:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        sent = await front_door.http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "trace-7/a"})
        own = sent.headers["omnibus-request-id"]
        assert (sent.status_code, sent.headers["x-request-id"]) == (200, "trace-7/a")
        assert sent.json()["id"] == f"chatcmpl-{own}"
        assert (await front_door.http.get(f"/v1/requests/{own}")).json()["status"] == "done"
        plain = await front_door.http.post("/v1/chat/completions", json=body)
        assert plain.headers["x-request-id"] == plain.headers["omnibus-request-id"] != own


@pytest.mark.parametrize("sent", ["x" * 256, "two words", "caf\xe9"])
async def test_a_request_id_is_refused_when_it_cannot_come_back_as_it_is(front_door: Front, sent: str) -> None:
    answer = await front_door.http.get("/v1/models", headers={"X-Request-Id": sent.encode("latin-1")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-Request-Id")
    assert answer.headers["x-request-id"] == answer.headers["omnibus-request-id"]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_documentation_needs_no_other_server_and_its_files_no_key(front_door: Front, page: str) -> None:
    async with httpx.AsyncClient(base_url=front_door.server.url) as browser:
        text = (await browser.get(page)).text
        files = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert len(files) >= 2
        for file in files:
            assert file.startswith("/")
            assert (await browser.get(file)).status_code == 200


async def test_models_that_are_ready_come_first(connection: Connection, pipeline: str) -> None:
    idle = omni_sim(f"a-{pipeline}")
    async with front(connection, omni_sim(f"b-{pipeline}"), idle=(idle,)) as front_door:

        async def both() -> bool:
            listed = (await front_door.http.get("/v1/models")).json()["data"]
            return [(one["id"], one["ready"]) for one in listed] == [
                (f"b-{pipeline}", True), (f"a-{pipeline}", False),
            ]  # fmt: skip

        await eventually(both)
        assert not (await front_door.http.get(f"/v1/models/{idle.name}")).json()["ready"]


BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/images/generations": {"prompt": "hi"},
    "/v1/audio/speech": {"input": "hi"},
}


async def test_a_model_is_ready_when_each_of_its_stages_has_a_replica_up(connection: Connection, pipeline: str) -> None:
    spec = omni_sim(pipeline)
    async with front(connection, spec) as front_door:
        answer = await front_door.http.get("/ready", params={"model": pipeline})
        assert (answer.status_code, answer.json()["missing"]) == (200, [])
        for path, body in BODIES.items():
            answer = await front_door.http.post(path, json={"model": pipeline, "wait": False, **body})
            assert answer.status_code == 200, path


@pytest.mark.parametrize("stream", [False, True])
async def test_who_does_not_want_to_wait_is_refused_at_once_when_no_replica_is_up(
    front_door: Front, stream: bool
) -> None:
    missing = (await front_door.http.get("/ready", params={"model": front_door.spec.name})).json()["missing"]
    assert missing == [{"stage": stage.name, "loading_seconds": None} for stage in front_door.spec.stages]
    for path, body in BODIES.items():
        asked = {"model": front_door.spec.name, "wait": False, **body}
        if "speech" not in path:
            asked["stream"] = stream
        answer = await front_door.http.post(path, json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready"), path
        assert int(answer.headers["retry-after"]) >= 1
    waiting = {"model": front_door.spec.name, "deadline": 0.3, **BODIES["/v1/completions"]}
    assert (await front_door.http.post("/v1/completions", json=waiting)).status_code == 504, "it waits by default"


async def test_the_readiness_of_an_unknown_model_is_not_found(front_door: Front) -> None:
    answer = await front_door.http.get("/ready", params={"model": "nobody"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert (await front_door.http.get("/ready")).status_code == 200
