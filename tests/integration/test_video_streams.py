"""Video that leaves while its stage still films: over HTTP with the unmodified `openai` package, and to Python clients."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.client.request_events import Ended, MediaPiece, OutputArrived
from omnibus.media import video
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.state import RequestState
from omnibus.wire import stores
from omnibus.wire.request import Request
from tests.support import held_stage, video_stage
from tests.support.filmed_text import frames_of, text_of
from tests.support.front import Front, front

pytestmark = pytest.mark.integration
PROMPT = "hold the camera while we look at what is in the first chunk of frames"
FAIL = PROMPT.replace("hold", "fail")


@pytest.fixture(autouse=True)
def held() -> Iterator[None]:
    with held_stage.held():
        yield


def spec_of(pipeline: str) -> PipelineSpec:
    return held_stage.spec_of(pipeline, "camera", "tests.support.video_stage:film", "video")


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline)) as made:
        yield made


async def chat(front_door: Front, prompt: str) -> AsyncIterator[Any]:
    """The deltas of a streamed chat."""
    stream = await front_door.openai.chat.completions.create(
        model=front_door.spec.name, messages=[{"role": "user", "content": prompt}], modalities=["video"], stream=True
    )
    async for chunk in stream:
        yield chunk.choices[0].delta


async def pieces_of(front_door: Front, prompt: str) -> AsyncIterator[Any]:
    """The videos among them; nothing else of the answer is a file."""
    async for delta in chat(front_door, prompt):
        assert not isinstance(delta.content, list)
        if (piece := getattr(delta, "video", None)) is not None:
            yield piece


def joined(pieces: list[dict[str, str]]) -> bytes:
    return b"".join(base64.b64decode(piece["data"]) for piece in pieces)


def frames_in(beginning: bytes) -> int:
    """Frames that can be played of a file whose end is not there."""
    with av.open(io.BytesIO(beginning)) as container:
        return sum(1 for _ in container.decode(video=0))


async def test_a_chats_first_frames_can_be_played_while_its_stage_still_films(front_door: Front) -> None:
    pieces: list[dict[str, str]] = []
    async for piece in pieces_of(front_door, PROMPT):
        pieces.append(piece)
        if not held_stage.go_on.is_set() and frames_in(joined(pieces)) == video_stage.CHUNK - 1:
            held_stage.go_on.set()  # without the first frames the stage would never go on
    assert [piece.get("media_type") for piece in pieces] == ["video/mp4", *[None] * (len(pieces) - 1)]
    assert text_of(joined(pieces)) == PROMPT
    assert video.dimensions(joined(pieces)) == (len(frames_of(PROMPT)) / video_stage.FPS, 64, 64)


async def test_no_frame_comes_twice_when_an_attempt_begins_again(front_door: Front) -> None:
    held_stage.attempts += [3, 2]
    pieces = [piece async for piece in pieces_of(front_door, FAIL)]
    assert held_stage.attempts == []
    assert text_of(joined(pieces)) == FAIL


async def test_the_rest_comes_from_the_output_when_the_flow_is_removed(
    connection: Connection, front_door: Front
) -> None:
    submission = await front_door.producer.submit(front_door.spec, Request(prompt=PROMPT, modalities=("video",)))
    pieces, others = [], []
    async for event in submission.events():
        if not isinstance(event, MediaPiece):
            others.append(event)
            continue
        pieces.append(event.values["video"])
        assert event.values["fps"] == video_stage.FPS
        if len(pieces) == 1:
            await connection.api(f"STREAM.PURGE.{stores.chunks_stream(front_door.spec.name)}")
            held_stage.go_on.set()
    assert np.abs(np.concatenate(pieces).astype(int) - frames_of(PROMPT)).max() < 64
    assert [type(event) for event in others] == [OutputArrived, Ended]


async def test_the_rest_comes_from_the_output_when_the_frames_are_too_many_for_a_flow(
    connection: Connection, pipeline: str
) -> None:
    held_stage.go_on.set()
    frame = frames_of(PROMPT)[0].nbytes
    async with front(connection, replace(spec_of(pipeline), max_flow_bytes=3 * frame)) as front_door:
        deltas = [delta async for delta in chat(front_door, PROMPT)]
        submission = await front_door.producer.submit(front_door.spec, Request(prompt=PROMPT, modalities=("video",)))
        assert (await submission.result()).state is RequestState.DONE
    shown = joined([delta.video for delta in deltas if hasattr(delta, "video")])
    assert text_of(shown) == PROMPT
