"""Bad input over HTTP: every kind gives a clear typed error, an id, and leaves nothing queued."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.errors import PortTaken
from omnibus.frontdoor.app import create_app
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.server import HttpServer
from omnibus.pipeline.spec import PipelineSpec
from tests.support.front import FixedPipelines, Front, front, nobody, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

LIMIT = 200_000


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    """Without workers: whatever is refused is refused before anything is queued."""
    spec = omni_sim(pipeline)
    small = PipelineSpec(name=spec.name, stages=spec.stages, max_prompt_bytes=1000)
    async with front(connection, small, Options(max_body_bytes=LIMIT), workers=False) as made:
        yield made


def says(text: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


CHAT, IMAGES, SPEECH = "/v1/chat/completions", "/v1/images/generations", "/v1/audio/speech"
WEB_IMAGE = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
BAD_INPUT: dict[str, tuple[str, dict[str, Any], int, str, str | None]] = {
    "unknown model": (CHAT, {"model": "nobody", "messages": says("hi")}, 404, "model_not_found", "model"),
    "wrong modality": (CHAT, {"messages": says("hi"), "modalities": ["smell"]}, 400, "unsupported_modality", "modalities"),
    "no modality": (CHAT, {"messages": says("hi"), "modalities": []}, 400, "invalid_request", "modalities"),
    "empty prompt": (CHAT, {"messages": says("  ")}, 400, "empty_prompt", "messages"),
    "no messages": (CHAT, {"messages": []}, 400, "invalid_request", "messages"),
    "messages missing": (CHAT, {}, 400, "invalid_request", "messages"),
    "oversized prompt": (CHAT, {"messages": says("x" * 2000)}, 413, "request_too_large", "messages"),
    "oversized body": (CHAT, {"messages": says("x" * LIMIT)}, 413, "request_too_large", None),
    "web image": (CHAT, {"messages": says(WEB_IMAGE)}, 400, "invalid_request", "messages[0].content[0].image_url.url"),
    "wrong type": (CHAT, {"messages": says("hi"), "seed": "7"}, 400, "invalid_request", "seed"),
    "two choices": (CHAT, {"messages": says("hi"), "n": 2}, 400, "invalid_request", "n"),
    "unknown stage": (
        CHAT, {"messages": says("hi"), "sampling_params": {"x": {}}}, 400, "invalid_request", "sampling_params.x",
    ),
    "unknown lane": (CHAT, {"messages": says("hi"), "lane": "batch"}, 400, "invalid_request", "lane"),
    "long tenant": (CHAT, {"messages": says("hi"), "user": "u" * 300}, 400, "invalid_request", "user"),
    "empty image prompt": (IMAGES, {"prompt": ""}, 400, "empty_prompt", "prompt"),
    "wrong image size": (IMAGES, {"prompt": "hi", "size": "big"}, 400, "invalid_request", "size"),
    "too many images": (IMAGES, {"prompt": "hi", "n": 1000}, 400, "invalid_request", "n"),
    "stream of urls": (
        IMAGES, {"prompt": "hi", "stream": True, "response_format": "url"}, 400, "invalid_request", "response_format",
    ),
    "fast speech": (SPEECH, {"input": "hi", "speed": 2.0}, 400, "invalid_request", "speed"),
    "unknown audio format": (SPEECH, {"input": "hi", "response_format": "vorbis"}, 400, "invalid_request", "response_format"),
    "samples as they are made, in a packed format": (
        SPEECH, {"input": "hi", "stream": True, "response_format": "flac"}, 400, "invalid_request", "response_format",
    ),
    "two prompts": ("/v1/completions", {"prompt": ["a", "b"]}, 400, "invalid_request", "prompt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
async def test_bad_input_is_refused_with_a_typed_error(front_door: Front, name: str) -> None:
    path, fields, status, code, param = BAD_INPUT[name]
    answer = await front_door.http.post(path, json={"model": front_door.spec.name, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"model": ', "application/json"),
        (b"[]", "application/json"),
        (b"{}", "text/plain"),
        (b"", "application/json"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(front_door: Front, content: bytes, content_type: str) -> None:
    answer = await front_door.http.post(CHAT, content=content, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/requests/bad.id", 400, "invalid_name"),
        ("DELETE", "/v1/requests/" + "x" * 65, 400, "invalid_name"),
        ("GET", "/v1/requests/unheard-of", 404, "request_not_found"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
    ],
)
async def test_a_wrong_address_is_refused_with_a_typed_error(
    front_door: Front, method: str, path: str, status: int, code: str
) -> None:
    answer = await front_door.http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-request-id"]


async def test_an_idempotency_key_is_refused_when_it_is_too_long(front_door: Front) -> None:
    body = {"model": front_door.spec.name, "messages": says("hi")}
    answer = await front_door.http.post(CHAT, json=body, headers={"Idempotency-Key": "k" * 256})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


async def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(front_door: Front) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"model": "'
        for _ in range(LIMIT // 1000 + 1):
            yield b"x" * 1000

    answer = await front_door.http.post(CHAT, content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_v1_is_closed_and_probes_are_open_when_there_are_api_keys(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), Options(api_keys=("secret",)), workers=False) as front_door:
        stranger = {"Authorization": "Bearer guess"}
        refused = await front_door.http.get("/v1/models", headers=stranger)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["x-request-id"]
        assert (await front_door.http.get("/v1/models")).status_code == 200
        for path in ("/live", "/health", "/ready", "/metrics", "/version"):
            assert (await front_door.http.get(path, headers=stranger)).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            await front_door.openai.with_options(api_key="guess").models.list()


async def test_probes_say_503_and_requests_fail_typed_when_the_broker_is_gone(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    async with (
        connect(own_server.url, name="test") as connection,
        front(connection, omni_sim(pipeline), workers=False) as front_door,
    ):
        assert (await front_door.http.get("/ready")).json() == {"status": "ok", "broker": True, "pipelines": True}
        await own_server.kill()
        await eventually(lambda: not connection.connected, what="disconnected")
        assert (await front_door.http.get("/live")).status_code == 200
        for path in ("/health", "/ready"):
            assert (await front_door.http.get(path)).status_code == 503
        answer = await front_door.http.post(CHAT, json={"model": front_door.spec.name, "messages": says("hi")})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
        await own_server.start()
        await eventually(lambda: connection.connected, what="connected again", timeout=10.0)
        assert (await front_door.http.get("/ready")).status_code == 200


async def test_a_taken_port_is_a_typed_error(front_door: Front) -> None:
    second = HttpServer(
        create_app(front_door.producer, FixedPipelines(), replicas=nobody, connected=lambda: True),
        port=front_door.server.port,
    )
    with pytest.raises(PortTaken, match=str(front_door.server.port)):
        await second.__aenter__()


async def test_what_nobody_expected_is_a_500_with_an_id_and_a_count(front_door: Front) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    front_door.producer.submit = broken  # type: ignore[method-assign]
    answer = await front_door.http.post(CHAT, json={"model": front_door.spec.name, "messages": says("hi")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "a bug" not in answer.text
    assert answer.headers["x-request-id"]
    assert 'omnibus_errors_total{where="frontdoor"}' in (await front_door.http.get("/metrics")).text


async def test_a_stream_ends_with_a_notice_and_its_request_goes_on_when_the_server_stops(
    connection: Connection, pipeline: str
) -> None:
    spec = omni_sim(pipeline, token_rate=4.0)
    async with front(connection, spec) as front_door:
        stream = await front_door.openai.chat.completions.create(
            model=spec.name, messages=says("one two three four five six seven eight nine ten"), stream=True
        )
        rid = stream.response.headers["x-request-id"]
        stopping = asyncio.create_task(front_door.server.stop())
        with pytest.raises(openai.APIError) as told:
            await _read(stream)
        await stopping
        assert told.value.code == "shutting_down"
        result = await front_door.producer.wait(spec.name, rid)
        assert result.state.value == "done"


async def _read(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass
