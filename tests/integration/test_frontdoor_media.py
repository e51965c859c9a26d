"""Pictures, sound and video that nobody can decode are refused before anything is queued, whoever sends them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import soundfile

from omnibus.broker.connection import Connection
from omnibus.client.producer import Producer
from omnibus.errors import InvalidRequest
from omnibus.pipeline.spec import PipelineSpec, StageSpec
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


async def test_a_raw_request_fails_without_an_attempt_when_its_picture_cannot_be_decoded(
    connection: Connection, front_door: Front
) -> None:
    picture: dict[str, Any] = {"type": "image", "data": base64.b64encode(TRUNCATED).decode()}
    body = {"messages": [{"role": "user", "content": [picture]}]}
    await connection.js_publish(subjects.request(front_door.spec.name, "raw"), json.dumps(body).encode())
    async with Producer(connection) as producer:

        async def ended() -> bool:
            try:
                return (await producer.result(front_door.spec.name, "raw")).state is RequestState.FAILED
            except Exception:  # noqa: BLE001 it is not admitted yet
                return False

        await eventually(ended)
        result = await producer.result(front_door.spec.name, "raw")
    assert result.failure is not None
    assert (result.failure.code, result.failure.param) == ("invalid_request", "messages[0].content[0].image")
    assert result.attempts == ()
    assert result.timings == ()


async def test_a_video_is_a_400_when_no_stage_takes_media(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(stage_id=0, name="p", engine="diffusers", model="m", final_output=True, final_output_type="image")
    async with front(connection, PipelineSpec(name=pipeline, stages=(stage,)), workers=False) as front_door:
        content = [{"type": "text", "text": "look"}, BROKEN["a video"][0]]
        body = {"messages": [{"role": "user", "content": content}], "modalities": ["image"]}
        error = (await front_door.http.post("/v1/chat/completions", json=body)).json()["error"]
    assert error["param"] == "messages[0].content[1].video_url"
    assert "no stage takes video" in error["message"]
