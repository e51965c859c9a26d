"""Video that leaves while it is made: what a chunk of it is, and what a caller of chats gets of its pieces."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest

from omnibus.client.request_events import ClientEvent, MediaPiece, Output, OutputArrived
from omnibus.errors import EngineError
from omnibus.frontdoor.endpoints.chat_stream import ChatStream
from omnibus.frontdoor.submitting import Head
from omnibus.media import video
from omnibus.wire.chunk import media_first, media_in
from omnibus.wire.payload import Payload
from omnibus.workers.chunked_video import ChunkedVideo
from tests.support.filmed_text import frames_of, text_of

pytestmark = pytest.mark.unit
TEXT = "eight characters of each frame can be read from it"
FRAMES = frames_of(TEXT)
WHOLE = Output(1, "video", "video/mp4", (video.encoded(FRAMES, 8.0),))


def piece(first: int, last: int, fps: float = 8.0, stage_id: int = 1) -> MediaPiece:
    return MediaPiece(stage_id, "video", {"video": FRAMES[first:last], "fps": fps})


async def chat(*events: ClientEvent) -> list[dict[str, Any]]:
    """The deltas of a chat with these events."""
    stream, frames = ChatStream(Head(rid="r1", model="omni", created=1000), 0), list[bytes]()
    for event in events:
        await stream.encode(event, frames)
    return [json.loads(frame.removeprefix(b"data: "))["choices"][0]["delta"] for frame in frames]


def shown(deltas: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(delta["video"]["data"]) for delta in deltas if "video" in delta)


async def test_a_chats_video_is_one_file_when_it_comes_in_pieces() -> None:
    deltas = await chat(piece(0, 3), piece(3, 4), piece(4, len(FRAMES)), OutputArrived(WHOLE))
    assert text_of(shown(deltas)) == TEXT
    assert not any(isinstance(delta.get("content"), list) for delta in deltas)


async def test_a_chats_video_comes_whole_when_pieces_of_it_are_missing_or_others() -> None:
    for events in ([piece(0, 3)], [piece(0, 3), piece(3, len(FRAMES), fps=4.0)], []):
        *_, last = await chat(*events, OutputArrived(WHOLE))
        (part,) = last["content"]
        assert base64.b64decode(part["file"]["file_data"].partition(",")[2]) == WHOLE.items[0]


async def test_only_the_first_video_comes_in_pieces_when_two_stages_film() -> None:
    other = Output(2, "video", "video/mp4", WHOLE.items)
    deltas = await chat(
        piece(0, 3), piece(0, 3, stage_id=2), piece(3, len(FRAMES)), OutputArrived(other), OutputArrived(WHOLE)
    )
    assert text_of(shown(deltas)) == TEXT
    assert sum(isinstance(delta.get("content"), list) for delta in deltas) == 1


def test_a_chunk_of_video_is_known_by_its_order() -> None:
    def order(outputs: dict[str, Any], names: Sequence[str]) -> list[str]:
        return list(media_first(outputs, ChunkedVideo("camera", names).of(outputs)[1]))  # type: ignore[index]

    def seen(names: Sequence[str]) -> tuple[str, str] | None:
        return media_in(dict.fromkeys(names, Payload(media_type="x", nbytes=0, data=b"")))

    assert seen(order({"mask": 1, "fps": 8, "film": FRAMES}, ["video", "film"])) == ("film", "video")
    assert seen(list(media_first({"film": FRAMES, "fps": 8, "sample_rate": 8000}, ()))) is None
    assert seen(list(media_first({"film": FRAMES, "fps": 8}, ()))) is None
    assert seen(["audio", "sample_rate"]) == ("audio", "audio")


def test_a_chunk_is_none_or_refused_when_it_is_no_part_of_the_video() -> None:
    chunked = ChunkedVideo("camera", ["video"])
    assert chunked.of({"text": "none"}) is None
    assert chunked.of({"video": FRAMES[None], "fps": 8}) is None, "several videos"
    assert chunked.of({"video": WHOLE.items[0]}) is None, "a file"
    assert chunked.of({"video": FRAMES[:0], "fps": 8}) is None
    for wrong in ({"video": FRAMES}, {"video": FRAMES.astype(float), "fps": 8}, {"video": FRAMES[0], "fps": 8}):
        with pytest.raises(EngineError, match="stage 'camera': output 'video': a video"):
            chunked.of(wrong)
    assert chunked.of({"video": FRAMES, "fps": 8}) is not None
    with pytest.raises(EngineError, match="64x64 pixels at 8 frames a second goes on with 64x64 pixels at 4 frames"):
        chunked.of({"video": FRAMES, "fps": 4})
