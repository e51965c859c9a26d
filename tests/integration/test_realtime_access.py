"""Who may open a WebSocket of `/v1/realtime`: keys, and the pages of other sites."""

from __future__ import annotations

import json

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from omnibus.broker.connection import Connection
from omnibus.frontdoor.context import Options
from tests.support.front import front
from tests.support.realtime_stages import talker

pytestmark = pytest.mark.integration


async def test_a_key_comes_in_a_header_or_in_a_subprotocol(connection: Connection, pipeline: str) -> None:
    key, url = "user-key", f"/v1/realtime?model={pipeline}"
    async with front(connection, talker(pipeline), Options(api_keys=(key,)), workers=False) as door:
        address = f"ws://127.0.0.1:{door.server.port}{url}"
        async with connect(address, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"
        offered = [
            Subprotocol(name) for name in ("realtime", f"openai-insecure-api-key.{key}", "openai-beta.realtime-v1")
        ]
        async with connect(address, subprotocols=offered) as socket:
            assert socket.subprotocol == "realtime", "not the key"
            assert json.loads(await socket.recv())["type"] == "session.created"
        for wrong in ([], [Subprotocol("realtime"), Subprotocol("openai-insecure-api-key.guess")]):
            with pytest.raises(InvalidStatus) as refused:
                await connect(address, subprotocols=wrong or None)
            assert refused.value.response.status_code == 401
            assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"


async def test_a_page_of_another_site_is_refused_unless_it_is_allowed(
    connection: Connection, pipeline: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = Options(allowed_origins=("https://good.example",))
    async with front(connection, talker(pipeline), options, workers=False) as door:
        address = f"ws://127.0.0.1:{door.server.port}/v1/realtime?model={pipeline}"
        for origin in ("https://good.example", door.server.url):
            async with connect(address, origin=Origin(origin)) as socket:
                assert json.loads(await socket.recv())["type"] == "session.created"
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, origin=Origin("https://evil.example"))
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body)["error"]["code"] == "cross_origin"
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
