"""Pictures, sound and video that nobody can decode are refused before anything is queued, whoever sends them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import soundfile

from omnibus.broker.connection import Connection
from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.errors import DeadlineExceeded, InvalidRequest, UnknownRequest
from omnibus.orchestrator import intake
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests import request_files
from omnibus.requests.request_files import check_decodable
from omnibus.requests.state import RequestState
from omnibus.wire import subjects
from omnibus.wire.request import ImagePart, Message, Request
from tests.support.front import Front, front
from tests.support.pictures import bitmap
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
TRUNCATED = bitmap(30_000)[:9_000]


def spec(pipeline: str) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="describer", engine="python", model="tests.support.media_stage:describe_media",
        final_output=True, final_output_type="text",
    )  # fmt: skip
    return PipelineSpec(name=pipeline, deadline=30.0, stages=(stage,))


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec(pipeline)) as made:
        yield made


def _url(media_type: str, data: bytes) -> dict[str, str]:
    return {"url": f"data:{media_type};base64,{base64.b64encode(data).decode()}"}


def _wave() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800, np.float32), 8000, format="FLAC")
    return file.getvalue()


BROKEN = {
    "a picture": ({"type": "image_url", "image_url": _url("image/bmp", TRUNCATED)}, "image_url"),
    "no picture": ({"type": "image_url", "image_url": _url("image/png", b"\x89PNG\r\n\x1a\n and so on")}, "image_url"),
    "a sound": (
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(_wave()[:60]).decode(), "format": "flac"}},
        "input_audio",
    ),
    "a video": ({"type": "video_url", "video_url": _url("video/mp4", b"\0\0\0\x18ftypisom and so on")}, "video_url"),
    "sound for a video": ({"type": "video_url", "video_url": _url("video/mp4", _wave())}, "video_url"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BROKEN)
async def test_a_file_is_a_400_with_its_field_when_it_cannot_be_decoded(
    front_door: Front, name: str, stream: bool
) -> None:
    part, field = BROKEN[name]
    content = [{"type": "text", "text": "look"}, part]
    body = {"messages": [{"role": "user", "content": content}], "stream": stream}
    answer = await front_door.http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        400, "invalid_request", f"messages[0].content[1].{field}",
    )  # fmt: skip


async def test_a_client_in_python_is_refused_when_its_picture_cannot_be_decoded(front_door: Front) -> None:
    picture = ImagePart(data=TRUNCATED, media_type="image/bmp")
    with pytest.raises(InvalidRequest) as refused:
        await front_door.producer.submit(front_door.spec, Request(messages=(Message(role="user", content=(picture,)),)))
    assert refused.value.param == "messages[0].content[0].image"


async def test_files_are_decoded_once_when_a_request_comes_again_under_its_key(
    front_door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def check(messages: Sequence[Message], *more: Any) -> None:
        decoded.append(len(messages))
        check_decodable(messages, *more)

    monkeypatch.setattr(request_files, "check_decodable", check)

    async def ask(picture: bytes) -> httpx.Response:
        content = [{"type": "image_url", "image_url": _url("image/bmp", picture)}]
        body = {"messages": [{"role": "user", "content": content}]}
        return await front_door.http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "again"})

    first, again, other = await ask(bitmap(100)), await ask(bitmap(100)), await ask(bitmap(200))
    assert (first.status_code, again.json()) == (200, first.json())
    assert decoded == [1, 1], "once for each picture"
    assert (other.status_code, other.json()["error"]["code"]) == (409, "request_conflict")


async def ended(connection: Connection, pipeline: str, rid: str, state: RequestState) -> Result:
    """The result of a raw request, once it has ended so."""
    async with Producer(connection) as producer:

        async def result() -> Result | None:
            with suppress(UnknownRequest):  # it is not admitted yet
                found = await producer.result(pipeline, rid)
                return found if found.state is state else None

        found = await eventually(result, 20.0)
    assert found is not None
    return found


async def test_a_raw_request_fails_without_an_attempt_when_its_picture_cannot_be_decoded(
    connection: Connection, front_door: Front
) -> None:
    await send_raw(connection, front_door.spec.name, "raw", TRUNCATED)
    result = await ended(connection, front_door.spec.name, "raw", RequestState.FAILED)
    assert result.failure is not None
    assert (result.failure.code, result.failure.param) == ("invalid_request", "messages[0].content[0].image")
    assert result.attempts == ()
    assert result.timings == ()


async def send_raw(connection: Connection, pipeline: str, rid: str, picture: bytes, **fields: float) -> None:
    part: dict[str, Any] = {"type": "image", "data": base64.b64encode(picture).decode()}
    body = {"messages": [{"role": "user", "content": [part]}], **fields}
    await connection.js_publish(subjects.request(pipeline, rid), json.dumps(body).encode())


@pytest.fixture
def endless_check(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files take a minute to decode, or until the test is over."""
    over = threading.Event()
    monkeypatch.setattr(request_files, "check_decodable", lambda *_: over.wait(60.0))
    yield
    over.set()


@pytest.mark.usefixtures("endless_check")
async def test_a_request_expires_at_its_deadline_when_its_files_are_still_being_decoded(
    connection: Connection, front_door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time left counts, from the arrival that its client names or from the broker's, not the whole deadline."""
    picture = ImagePart(data=bitmap(30_000), media_type="image/bmp")
    request = Request(messages=(Message(role="user", content=(picture,)),), deadline=60.0)
    async with asyncio.timeout(20.0):
        with pytest.raises(DeadlineExceeded):
            await front_door.producer.submit(front_door.spec, request, rid="late", arrival=time.time() - 59.0)
    with pytest.raises(UnknownRequest):
        await front_door.producer.result(front_door.spec.name, "late")
    seen: list[float] = []

    async def noted(request: Request, *, within: float) -> None:
        seen.append(within)
        await request_files.check_files(request, within=within)

    monkeypatch.setattr(intake, "check_files", noted)
    await send_raw(connection, front_door.spec.name, "raw", bitmap(30_000), deadline=1.0)
    assert (await ended(connection, front_door.spec.name, "raw", RequestState.EXPIRED)).attempts == ()
    assert 0.0 < seen[0] < 1.0, "a delivery that comes again would hide that the first one waited too long"


async def test_a_video_is_a_400_when_no_stage_takes_media(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(
        stage_id=0, name="p", engine="transformers", model="m", final_output=True, final_output_type="audio"
    )
    async with front(connection, PipelineSpec(name=pipeline, stages=(stage,)), workers=False) as front_door:
        content = [{"type": "text", "text": "look"}, BROKEN["a video"][0]]
        body = {"messages": [{"role": "user", "content": content}], "modalities": ["audio"]}
        error = (await front_door.http.post("/v1/chat/completions", json=body)).json()["error"]
    assert error["param"] == "messages[0].content[1].video_url"
    assert "no stage takes video" in error["message"]
