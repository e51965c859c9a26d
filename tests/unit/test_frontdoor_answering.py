"""Results as bodies: whole, in pieces, by id."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from omnibus.client.request_events import Output, Result, TextPiece
from omnibus.errors import EngineError
from omnibus.frontdoor.answers import server_timing
from omnibus.frontdoor.bodies import Answer, StreamOptions, to_json
from omnibus.frontdoor.endpoints.chat_answers import chat_completion
from omnibus.frontdoor.endpoints.chat_stream import ChatStream
from omnibus.frontdoor.endpoints.completions import CompletionStream, completion
from omnibus.frontdoor.endpoints.images import Previews, images
from omnibus.frontdoor.endpoints.request_status import request_answer
from omnibus.frontdoor.streaming import TextStream
from omnibus.frontdoor.submitting import Head
from omnibus.media import pictures
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import StageTiming, TokenUsage
from omnibus.wire.failure import Failure

pytestmark = pytest.mark.unit

HEAD = Head(rid="r1", model="omni", created=1000)
TEXT = Output(
    stage_id=0,
    modality="text",
    finish_reason="length",
    usage=TokenUsage(3, 4),
    items=(b"a circle",),
    media_type="text/plain",
)
IMAGE = Output(
    stage_id=1, modality="image", finish_reason="stop", usage=TokenUsage(), items=(b"png",), media_type="image/png"
)
AUDIO = Output(
    stage_id=2, modality="audio", finish_reason="stop", usage=TokenUsage(), items=(b"wav",), media_type="audio/wav"
)
JSON = Output(
    stage_id=3, modality="json", finish_reason="stop", usage=TokenUsage(), items=(b"{}",), media_type="application/json"
)
IMAGE_PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(b'png').decode()}"}}
SPEC = PipelineSpec(
    name="omni",
    stages=(StageSpec(stage_id=0, name="thinker", engine="vllm", final_output=True, final_output_type="text"),),
)


def plain(answer: Answer | bytes) -> dict[str, Any]:
    """The JSON of an answer, or of the server-sent event that it is in."""
    text = (answer if isinstance(answer, bytes) else to_json(answer)).decode()
    body: dict[str, Any] = json.loads(text.removeprefix("data: "))
    return body


def deltas(chunks: list[Any]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in plain(chunk)["choices"]]


def test_a_chat_is_a_plain_string_when_text_is_all_there_is() -> None:
    body = plain(chat_completion(HEAD, [TEXT]))
    assert body == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 1000,
        "model": "omni",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a circle", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


def test_a_chat_has_content_parts_and_audio_when_there_is_more_than_text() -> None:
    message = plain(chat_completion(HEAD, [TEXT, IMAGE, AUDIO]))["choices"][0]["message"]
    assert message["content"] == [{"type": "text", "text": "a circle"}, IMAGE_PART]
    assert base64.b64decode(message["audio"]["data"]) == b"wav"
    assert message["audio"]["transcript"] == "a circle"
    assert message["audio"]["expires_at"] == 1000 + 900


def test_a_chat_has_no_content_when_there_is_only_sound() -> None:
    message = plain(chat_completion(HEAD, [AUDIO]))["choices"][0]["message"]
    assert message["content"] is None
    assert message["audio"]["transcript"] == ""


def test_an_output_is_a_file_part_when_openai_has_no_place_for_it() -> None:
    message = plain(chat_completion(HEAD, [TEXT, JSON]))["choices"][0]["message"]
    assert message["content"][1] == {
        "type": "file",
        "file": {"filename": "json-0.json", "file_data": "data:application/json;base64,e30="},
    }


def test_an_unknown_finish_reason_reads_as_stop() -> None:
    aborted = Output(
        stage_id=0, modality="text", finish_reason="abort", usage=TokenUsage(), items=(b"",), media_type="text/plain"
    )
    assert plain(completion(HEAD, [aborted]))["choices"][0]["finish_reason"] == "stop"


def test_a_chat_streams_text_as_it_comes_and_other_outputs_when_ready() -> None:
    stream = ChatStream(HEAD, 0)
    chunks = [
        *stream.opening(),
        *stream.text("a "),
        *stream.output(IMAGE),
        *stream.text("circle"),
        *stream.output(TEXT),
        *stream.output(AUDIO),
        *stream.closing([TEXT, IMAGE, AUDIO]),
    ]
    assert deltas(chunks) == [
        {"role": "assistant", "content": ""},
        {"content": "a "},
        {"content": [IMAGE_PART]},
        {"content": "circle"},
        {"audio": {"id": "audio-r1", "data": "d2F2", "transcript": "a circle", "expires_at": 1900}},
        {},
    ]
    assert plain(chunks[-1])["choices"][0]["finish_reason"] == "length"
    assert "usage" not in plain(chunks[-1])


def test_a_long_sound_streams_in_pieces_that_join_to_the_file() -> None:
    sound = bytes(range(256)) * 1000
    stream = ChatStream(HEAD, 0)
    stream.text("la la")
    chunks = list(stream.output(replace(AUDIO, items=(sound,))))
    pieces = [delta["audio"] for delta in deltas(chunks)]
    assert all(len(to_json(chunk)) < 34_000 for chunk in chunks)
    assert base64.b64decode("".join(piece["data"] for piece in pieces)) == sound
    assert b"".join(base64.b64decode(piece["data"]) for piece in pieces) == sound
    assert pieces[0].keys() == {"id", "data", "transcript", "expires_at"}
    assert all(piece.keys() == {"data"} for piece in pieces[1:])


@pytest.mark.parametrize("stream", [ChatStream(HEAD, 0), CompletionStream(HEAD, 0)])
@pytest.mark.parametrize("letter", ["a", "\0", "ä", "🙂", '"'])
def test_a_long_text_streams_in_short_lines(stream: TextStream, letter: str) -> None:
    chunks = [plain(chunk) for chunk in stream.text(letter * 30_000)]
    texts = [
        choice.get("text", choice.get("delta", {}).get("content")) for (choice,) in (one["choices"] for one in chunks)
    ]
    assert "".join(texts) == letter * 30_000
    assert max(len(json.dumps(chunk)) for chunk in chunks) < 60_000


async def test_a_chat_stream_keeps_quiet_about_stages_that_are_not_asked_for() -> None:
    stream, frames = ChatStream(HEAD, 0), list[bytes]()
    for stage_id, text in ((7, "thinking"), (0, "text")):
        await stream.encode(TextPiece(stage_id=stage_id, text=text), frames)
    assert deltas(frames) == [{"role": "assistant", "content": ""}, {"content": "text"}]


@pytest.mark.parametrize("options", [None, StreamOptions(include_usage=True)])
@pytest.mark.parametrize("kind", [ChatStream, CompletionStream])
@pytest.mark.parametrize("text", ["a", 'quoted "text": "', "back\\slash", "ä🙂\u2028\0\n", "{}", "[DONE]"])
def test_a_piece_has_the_shape_of_any_chunk(kind: type[TextStream], options: StreamOptions | None, text: str) -> None:
    stream = kind(replace(HEAD, model='of "text": "' + text), 0, options)
    (piece,) = stream.text(text)
    assert plain(piece) == plain(stream.piece(text))
    assert piece.startswith(b"data: {")
    assert piece.count(b"\n") == 2
    assert piece.endswith(b"}\n\n")


def test_a_chat_stream_ends_with_usage_when_it_was_asked_for() -> None:
    stream = ChatStream(HEAD, 0, StreamOptions(include_usage=True))
    first, last = plain(stream.opening()[0]), plain(stream.closing([TEXT])[-1])
    assert first["usage"] is None
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 7


def test_usage_is_that_of_all_stages_when_no_text_is_among_the_outputs() -> None:
    thinker = StageTiming(0, 0.0, 0.0, 1.0, usage=TokenUsage(3, 4))
    talker = StageTiming(1, 1.0, 1.0, 2.0, usage=TokenUsage(4, 20))

    def total(outputs: list[Output]) -> int:
        return int(plain(chat_completion(HEAD, outputs, [thinker, talker]))["usage"]["total_tokens"])

    assert (total([AUDIO]), total([TEXT, AUDIO])) == (3 + 4 + 20, 3 + 4)
    stream = ChatStream(HEAD, 0, StreamOptions(include_usage=True))
    assert plain(stream.closing([IMAGE], [thinker])[-1])["usage"]["total_tokens"] == 7


def test_a_completion_streams_pieces_then_the_reason() -> None:
    stream = CompletionStream(HEAD, 0)
    chunks = [*stream.text("a "), *stream.text("circle"), *stream.closing([TEXT])]
    choices = [plain(chunk)["choices"][0] for chunk in chunks]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [
        ("a ", None),
        ("circle", None),
        ("", "length"),
    ]


def test_images_are_base64_or_links() -> None:
    file = pictures.encoded(np.zeros((2, 3, 3), np.uint8))
    picture = replace(IMAGE, items=(file,))
    as_data = plain(images(HEAD, [picture], image_format="png"))["data"]
    as_links = plain(images(HEAD, [picture], image_format="png", links=["http://host/a"]))["data"]
    assert as_data == [{"b64_json": base64.b64encode(file).decode()}]
    assert as_links == [{"url": "http://host/a"}]


def test_previews_are_spread_over_the_steps() -> None:
    previews = Previews(2)
    taken = [previews.take(step, 9) for step in range(1, 10)]
    assert taken == [None, None, 0, None, None, 1, None, None, None]


def test_previews_are_left_out_when_none_is_wanted() -> None:
    previews = Previews(0)
    assert [previews.take(step, 4) for step in range(1, 5)] == [None] * 4


def test_a_request_by_id_shows_outputs_failure_and_times() -> None:
    result = Result(
        rid="r1",
        pipeline="omni",
        state=RequestState.FAILED,
        deadline=1300.0,
        run=1,
        outputs=(TEXT, AUDIO),
        failure=Failure.of(EngineError("it broke"), stage_id=0),
        timings=(StageTiming(0, 1.0, 1.5, 3.5), StageTiming(9, 5.0, 4.0, 4.5)),
        created=1000.7,
    )
    body = plain(request_answer(result, SPEC, "alias"))
    assert (body["status"], body["model"], body["created"]) == ("failed", "alias", 1000)
    assert body["outputs"][0]["items"] == [{"media_type": "text/plain", "text": "a circle"}]
    assert body["outputs"][1]["items"] == [{"media_type": "audio/wav", "data": "d2F2"}]
    assert body["error"]["code"] == "engine_error"
    assert body["stages"][0] == {"stage": "thinker", "queued": 0.5, "running": 2.0}
    assert body["stages"][1]["queued"] == 0.0  # clocks differ, time does not run backwards
    assert server_timing(result.timings[:1], SPEC) == "thinker-queue;dur=500.0, thinker;dur=2000.0"
