"""Sound that leaves while it is made: what a caller gets of its pieces, in chats and as speech."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import soundfile

from omnibus.client.request_events import ClientEvent, Ended, MediaPiece, Output, OutputArrived, Result, TextPiece
from omnibus.errors import EngineError
from omnibus.frontdoor.endpoints.chat_stream import ChatStream
from omnibus.frontdoor.endpoints.speech import Speech
from omnibus.frontdoor.live_sound import PIECE_BYTES, LiveSound
from omnibus.frontdoor.submitting import Head
from omnibus.media import sound
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import StageTiming, TokenUsage

pytestmark = pytest.mark.unit
HEAD = Head(rid="r1", model="omni", created=1000)
RATE = 8000
SAMPLES = (0.5 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)).astype(np.float32)
TEXT = Output(0, "text", "text/plain", (b"la la la",))
WHOLE = Output(2, "audio", "audio/wav", (sound.encoded(SAMPLES, RATE),), usage=TokenUsage(3, 4))


def pieces(count: int = 7, stage_id: int = 2) -> list[MediaPiece]:
    parts = np.array_split(SAMPLES, count)
    return [MediaPiece(stage_id, "audio", {"audio": part, "sample_rate": RATE}) for part in parts]


TIMINGS = (StageTiming(0, 0.0, 0.0, 1.0, usage=TokenUsage(3, 4)), StageTiming(1, 1.0, 1.0, 2.0))


def ended(*outputs: Output) -> Ended:
    return Ended(Result("r1", "omni", RequestState.DONE, 0.0, 1.0, 1, outputs, TIMINGS, None))


async def chat(events: Sequence[ClientEvent], audio: str) -> list[dict[str, Any]]:
    """The deltas of a chat with these events."""
    stream, frames = ChatStream(HEAD, 0, None, audio), list[bytes]()
    for event in events:
        await stream.encode(event, frames)
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames]
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


async def speech(events: Sequence[ClientEvent], wanted: str = "pcm") -> bytes:
    made, frames = Speech(wanted), list[bytes]()
    for event in events:
        await made.as_file(event, frames)
    return b"".join(frames)


async def test_a_chat_gets_its_sound_in_pieces_of_whole_samples_when_it_comes_in_pieces() -> None:
    text = [TextPiece(0, "la "), TextPiece(0, "la ")]
    first, *rest = pieces()
    deltas = await chat(
        [*text, first, TextPiece(0, "la"), *rest, OutputArrived(TEXT), OutputArrived(WHOLE), ended(TEXT, WHOLE)],
        "pcm16",
    )
    audio = [delta["audio"] for delta in deltas if "audio" in delta]
    data = [base64.b64decode(piece["data"]) for piece in audio]
    assert len(audio) > 5, "it does not wait for the end"
    assert all(len(piece) % 6 == 0 for piece in data[:-1])
    assert base64.b64decode("".join(piece["data"] for piece in audio)) == b"".join(data)
    assert b"".join(data) == sound.encoded(SAMPLES, RATE, "pcm")
    assert (audio[0]["id"], audio[0]["expires_at"], audio[0]["transcript"]) == ("audio-r1", 1900, "la la ")
    assert not any({"id", "expires_at"} & piece.keys() for piece in audio[1:]), "clients join what comes twice"
    assert "".join(piece.get("transcript", "") for piece in audio) == "la la la"
    assert [delta["content"] for delta in deltas if "content" in delta] == ["", "la ", "la ", "la"]


async def test_text_behind_the_last_piece_is_in_the_transcript_of_a_chat() -> None:
    deltas = await chat([*pieces(1), TextPiece(0, "late"), OutputArrived(WHOLE), ended(WHOLE)], "pcm16")
    assert [delta["audio"].get("transcript") for delta in deltas if "audio" in delta][-1] == "late"


@pytest.mark.parametrize("wanted", ["wav", "flac", "mp3", "opus", "aac", "pcm"])
async def test_speech_is_one_file_whether_it_comes_in_pieces_or_not(wanted: str) -> None:
    streamed = await speech([*pieces(), OutputArrived(WHOLE), ended(WHOLE)], wanted)
    whole = await speech([OutputArrived(WHOLE), ended(WHOLE)], wanted)
    assert whole == sound.converted(WHOLE.items[0], wanted)
    if wanted == "pcm":
        one_step = np.abs(np.frombuffer(streamed, "<i2").astype(int) - np.frombuffer(whole, "<i2"))
        assert one_step.max() <= 1, "the whole was rounded before it got another rate"
    else:
        (one, rate), (other, other_rate) = sound.decoded(streamed), sound.decoded(whole)
        assert rate == other_rate
        assert one.shape[1] == pytest.approx(other.shape[1], abs=0.2 * rate)


async def test_a_streamed_wav_is_read_by_another_reader() -> None:
    data = await speech([*pieces(), OutputArrived(WHOLE), ended(WHOLE)], "wav")
    samples, rate = soundfile.read(io.BytesIO(data))
    assert rate == RATE
    np.testing.assert_allclose(samples, SAMPLES, atol=1e-4)


async def test_events_of_speech_join_to_the_file_and_end_with_the_tokens() -> None:
    made, frames = Speech("pcm"), list[bytes]()
    for event in (*pieces(), OutputArrived(WHOLE), ended(WHOLE)):
        await made.as_events(event, frames)
    named = [frame.split(b"\n", 1) for frame in frames]
    events = [json.loads(data.removeprefix(b"data: ")) for _, data in named]
    assert [name.decode() for name, _ in named] == [f"event: {event['type']}" for event in events]
    *deltas, done = events
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == sound.encoded(SAMPLES, RATE, "pcm")
    assert all(len(frame) < 40_000 for frame in frames)
    assert done == {
        "type": "speech.audio.done", "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    }  # fmt: skip


async def test_the_first_sound_alone_is_the_audio_when_two_stages_speak() -> None:
    other = Output(5, "audio", "audio/wav", WHOLE.items)
    deltas = await chat(
        [*pieces(2), *pieces(2, stage_id=5), OutputArrived(other), OutputArrived(WHOLE), ended()], "pcm16"
    )
    data = b"".join(base64.b64decode(delta["audio"]["data"]) for delta in deltas if "audio" in delta)
    assert data == sound.encoded(SAMPLES, RATE, "pcm")
    parts = [part["type"] for delta in deltas if isinstance(delta.get("content"), list) for part in delta["content"]]
    assert parts == ["file"]


async def test_engine_error_when_there_is_no_sound_at_the_end_or_none_in_a_piece() -> None:
    with pytest.raises(EngineError):
        await speech([ended()])
    with pytest.raises(EngineError, match="the audio of stage 2"):
        await LiveSound("pcm").piece(MediaPiece(2, "audio", {"audio": np.array([np.nan]), "sample_rate": RATE}))


def test_a_piece_has_whole_samples_and_a_short_line() -> None:
    assert PIECE_BYTES % 6 == 0
    assert PIECE_BYTES * 4 / 3 < 40_000


async def test_engine_error_when_an_attempt_goes_on_at_another_rate() -> None:
    live = LiveSound("wav")
    await live.piece(pieces()[0])
    with pytest.raises(EngineError, match=r"stage 2: .* 8000 Hz was made again at 16000 Hz"):
        await live.piece(MediaPiece(2, "audio", {"audio": SAMPLES, "sample_rate": 2 * RATE}))
