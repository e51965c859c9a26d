"""Pages of other sites, and names that lead here: what a browser sends for them is refused; programs and own pages are not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from omnibus.broker.connection import Connection
from omnibus.frontdoor.context import Options
from tests.support.front import Front, front, omni_sim

pytestmark = pytest.mark.integration

GOOD = "https://good.example"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    """A front door without keys, on loopback, that one other site may call."""
    options = Options(host="127.0.0.1", allowed_origins=(GOOD,), public_url="https://omni.example/v")
    async with front(connection, omni_sim(pipeline), options) as made:
        yield made


async def paused(door: Front) -> bool:
    return bool((await door.http.get("/is_paused")).json()["is_paused"])


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else None


@pytest.mark.parametrize(
    "marks",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "CROSS-SITE"},
        {"Origin": f"{GOOD}.evil.example"},
        {"Origin": f"{GOOD}:8443"},
    ],
)
async def test_a_form_of_another_site_changes_nothing(door: Front, marks: dict[str, str]) -> None:
    answer = await door.http.post("/pause", headers={**FORM, **marks}, content=b"x=1")
    assert code(answer) == (403, "cross_origin")
    assert "OMNIBUS_ALLOWED_ORIGINS" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]
    assert not await paused(door)


@pytest.mark.parametrize(
    "marks",
    [
        {},
        {"Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://omni.lan", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://omni.lan", "X-Forwarded-Host": "omni.lan"},
        {"Origin": "https://omni.lan", "X-Forwarded-Host": "omni.lan:443, inner"},
        {"Origin": GOOD, "Sec-Fetch-Site": "cross-site"},
        {"Origin": GOOD},
        {"Origin": "https://omni.example"},
        {"Origin": "https://omni.example", "Host": "127.0.0.1:9", "Sec-Fetch-Site": "same-site"},
    ],
)
async def test_own_pages_allowed_ones_and_programs_are_served(door: Front, marks: dict[str, str]) -> None:
    assert code(await door.http.post("/pause", headers=marks)) == (200, None)
    assert await paused(door)
    own = {"Origin": door.server.url}
    assert code(await door.http.post("/resume", headers=own)) == (200, None)
    assert not await paused(door)
    assert (await door.http.post("/v1/chat/completions", json=CHAT, headers=marks)).status_code == 200


async def test_every_route_that_changes_something_refuses_pages_of_other_sites(door: Front) -> None:
    app = door.server._app.app if hasattr(door.server._app, "app") else door.server._app
    routes = [route for route in app.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
    tried = 0
    for route in routes:
        for method in (route.methods or set()) - {"GET", "HEAD", "OPTIONS"}:
            path = route.path.replace("{what:path}", "x").replace("{", "").replace("}", "")
            for marks in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://elsewhere.example"}):
                answer = await door.http.request(method, path, headers=marks)
                assert code(answer) == (403, "cross_origin"), (method, path)
            tried += 1
    assert tried > 40, tried


async def test_pages_of_other_sites_may_read_what_their_browser_keeps_from_them(door: Front) -> None:
    marks = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for path in ("/ui", "/v1/models", "/live"):
        answer = await door.http.get(path, headers=marks)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


async def test_every_page_may_order_where_all_origins_are_allowed(connection: Connection, pipeline: str) -> None:
    options = Options(host="127.0.0.1", allowed_origins=("*",))
    async with front(connection, omni_sim(pipeline), options, workers=False) as door:
        marks = {"Origin": "https://any.example", "Host": "any.example", "Sec-Fetch-Site": "cross-site"}
        assert code(await door.http.post("/resume", headers=marks)) == (200, None)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:1"]
)
async def test_a_name_that_was_made_to_lead_here_is_refused(door: Front, host: str) -> None:
    for method, path in (("GET", "/v1/cluster"), ("GET", "/ui"), ("POST", "/pause"), ("POST", "/v1/chat/completions")):
        answer = await door.http.request(method, path, headers={"Host": host, "Origin": f"http://{host}"})
        assert code(answer) == (403, "unknown_host"), (method, path)
        assert "OMNIBUS_PUBLIC_URL" in answer.json()["error"]["message"]
    assert not await paused(door)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST.", "omni.localhost:80", "[::1]:8000", "10.0.0.7:8000",
     "frontdoor:8000", "omni.example", "good.example:443"],
)  # fmt: skip
async def test_own_names_are_known(door: Front, host: str) -> None:
    assert (await door.http.get("/v1/models", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("options", [Options(host="127.0.0.1", api_keys=("k",)), Options(host="0.0.0.0"), Options()])
async def test_any_name_is_known_where_keys_protect_or_others_reach_the_address(
    connection: Connection, pipeline: str, options: Options
) -> None:
    async with front(connection, omni_sim(pipeline), options, workers=False) as door:
        assert (await door.http.get("/v1/models", headers={"Host": "omni.corp.example"})).status_code == 200


async def test_a_websocket_is_refused_as_requests_are(door: Front) -> None:
    address = f"ws://127.0.0.1:{door.server.port}/v1/realtime?model={door.spec.name}"
    for origin in (GOOD, door.server.url, "https://omni.example"):
        async with connect(address, origin=Origin(origin)) as socket:
            assert "session.created" in str(await socket.recv())
    for marks in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, additional_headers=marks)
        assert refused.value.response.status_code == 403
        assert b"cross_origin" in (refused.value.response.body or b"")
