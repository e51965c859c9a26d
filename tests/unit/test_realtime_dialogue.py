"""The state machine of a conversation: events in, events and acts out."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from pydantic import TypeAdapter

from omnibus.errors import EngineError
from omnibus.frontdoor.answers import MediaUsage
from omnibus.frontdoor.realtime import audio_buffer, items
from omnibus.frontdoor.realtime.dialogue import Dialogue, StartResponse, StopResponse
from omnibus.frontdoor.realtime.response import End, Response
from omnibus.frontdoor.realtime.session_settings import parameters
from omnibus.frontdoor.realtime.turn_detection import EnergyDetector, SpeechStarted, SpeechStopped
from omnibus.media import sound
from omnibus.pipeline.spec import PipelineSpec, SpeechSpec, StageSpec
from omnibus.wire.request import AudioPart, Message
from tests.support.realtime_stages import talker

pytestmark = pytest.mark.unit
RATE = 24_000
USAGE = MediaUsage(input_tokens=1, output_tokens=2, total_tokens=3)


def tone(seconds: float, loudness: float = 0.3) -> np.ndarray:
    return (32_767 * loudness * np.sin(np.arange(int(RATE * seconds)) * 0.1)).astype("<i2")


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(RATE * seconds), "<i2")


def append(*pieces: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.concatenate(pieces).tobytes()).decode()
    return {"type": "input_audio_buffer.append", "audio": data}


def text_item(text: str, **more: Any) -> dict[str, Any]:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **more}
    return {"type": "conversation.item.create", "item": item}


CREATE: dict[str, Any] = {"type": "response.create"}
CANCEL: dict[str, Any] = {"type": "response.cancel"}


class Talk:
    """A session with all that it did."""

    def __init__(self, spec: PipelineSpec | None = None) -> None:
        self.dialogue = Dialogue(spec or talker("p"), "p", "0" * 24)
        self.dialogue.opening()

    def send(self, *events: dict[str, Any]) -> list[Any]:
        return [effect for event in events for effect in self.dialogue.receive(json.dumps(event).encode())]

    def manual(self, **more: Any) -> list[Any]:
        audio = {"input": {"turn_detection": None}}
        return self.send({"type": "session.update", "session": {"type": "realtime", "audio": audio, **more}})

    def respond(self, **settings: Any) -> Response:
        start = self.send({**CREATE, "response": settings})[-1]
        assert isinstance(start, StartResponse)
        return start.response


def kinds(effects: list[Any]) -> list[str]:
    return [effect["type"] if isinstance(effect, dict) else type(effect).__name__ for effect in effects]


def refused(effects: list[Any]) -> dict[str, Any]:
    (event,) = effects
    assert event["type"] == "error"
    error: dict[str, Any] = event["error"]
    return error


def test_a_session_is_updated_where_it_is_named_and_keeps_the_rest() -> None:
    talk = Talk()
    vad = {"type": "server_vad", "threshold": 0.8}
    update = {"instructions": "be brief", "audio": {"input": {"turn_detection": vad}, "output": {"voice": "ash"}}}
    (event,) = talk.send({"type": "session.update", "session": update})
    session = event["session"]
    assert (event["type"], session["instructions"], session["model"]) == ("session.updated", "be brief", "p")
    assert session["audio"]["input"]["turn_detection"]["threshold"] == 0.8
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500
    assert session["output_modalities"] == ["audio"]
    (event,) = talk.send({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}})
    assert event["session"]["audio"]["input"]["turn_detection"] is None
    assert event["session"]["instructions"] == "be brief"


def test_a_null_changes_nothing_but_turn_detection() -> None:
    talk = Talk()
    vad = {"type": "server_vad", "threshold": None, "create_response": None, "idle_timeout_ms": None}
    audio = {"input": {"format": None, "turn_detection": vad}, "output": None}
    (event,) = talk.send({"type": "session.update", "session": {"audio": audio, "output_modalities": None}})
    assert event["session"]["audio"]["input"]["turn_detection"]["threshold"] == 0.5
    assert event["session"]["output_modalities"] == ["audio"]
    (event,) = talk.manual()
    assert event["session"]["audio"]["input"]["turn_detection"] is None


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({"type": "transcription"}, "session.type"),
        ({"tools": [{"type": "function", "name": "f"}]}, "session.tools"),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "session.audio.input.format.type"),
        ({"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}, "session.audio.input.turn_detection.type"),
        ({"audio": {"input": {"transcription": {"model": "w"}}}}, "session.audio.input.transcription"),
        ({"audio": {"output": {"speed": 1.5}}}, "session.audio.output.speed"),
        ({"output_modalities": ["image"]}, "session.output_modalities[0]"),
        ({"model": "other"}, "session.model"),
    ],
)
def test_an_update_is_refused_by_its_field_and_changes_nothing(session: dict[str, Any], param: str) -> None:
    talk = Talk()
    event = {"type": "session.update", "event_id": "mine", "session": {"instructions": "new", **session}}
    error = refused(talk.send(event))
    assert (error["param"], error["code"], error["event_id"]) == (param, "invalid_request", "mine")
    assert talk.send({"type": "session.update", "session": {}})[0]["session"]["instructions"] == ""


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b'{"type": "no.such"}', b'{"event_id": 3}', b'{"type": "response.create", "x": 1}', b"\xff"],
)
def test_what_is_no_event_is_an_error_event(raw: bytes) -> None:
    error = refused(Talk().dialogue.receive(raw))
    assert (error["code"], error["type"]) == ("invalid_request", "invalid_request_error")


def test_items_are_kept_in_their_order_and_become_the_messages_of_a_response() -> None:
    talk = Talk()
    first, _ = talk.send(text_item("one", id="a"))
    assert (first["item"]["id"], first["previous_item_id"]) == ("a", None)
    assert talk.send(text_item("three", id="c"))[0]["previous_item_id"] == "a"
    assert talk.send({**text_item("two", id="b"), "previous_item_id": "a"})[0]["previous_item_id"] == "a"
    assert talk.send({**text_item("zero", id="z"), "previous_item_id": "root"})[1]["previous_item_id"] is None
    assert refused(talk.send(text_item("x", id="a")))["code"] == "request_conflict"
    assert refused(talk.send({**text_item("x"), "previous_item_id": "no"}))["param"] == "previous_item_id"
    assert kinds(talk.send({"type": "conversation.item.delete", "item_id": "c"})) == ["conversation.item.deleted"]
    assert refused(talk.send({"type": "conversation.item.retrieve", "item_id": "c"}))["param"] == "item_id"
    response = talk.respond(instructions="be kind")
    assert [(one.role, one.content) for one in response.messages] == [
        ("system", "be kind"), ("user", "zero"), ("user", "one"), ("user", "two"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("role", "kind"), [("assistant", "input_text"), ("user", "output_text"), ("system", "input_image")]
)
def test_an_item_is_refused_when_its_role_cannot_say_that(role: str, kind: str) -> None:
    content = {"type": kind, "text": "x", "image_url": "data:image/png;base64,AAAA"}
    content.pop("text" if kind == "input_image" else "image_url")
    error = refused(Talk().send(text_item("", role=role, content=[content])))
    assert error["param"] == "item.content[0].type"


def test_a_conversation_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "MAX_ITEMS", 2)
    monkeypatch.setattr(items, "MAX_BYTES", 100)
    talk = Talk()
    assert refused(talk.send(text_item("x" * 101)))["code"] == "request_too_large"
    talk.send(text_item("one"), text_item("two"))
    assert refused(talk.send(text_item("three")))["code"] == "request_too_large"
    assert refused(talk.send(CREATE))["code"] == "request_too_large"


def test_a_turn_that_is_committed_by_hand_is_a_wav_of_all_that_was_appended() -> None:
    talk = Talk()
    talk.manual()
    assert talk.send(append(tone(0.1)), append(tone(0.2))) == []
    committed, added, done = talk.send({"type": "input_audio_buffer.commit"})
    assert committed["item_id"] == added["item"]["id"] == done["item"]["id"]
    assert added["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    (message,) = talk.respond().messages
    (part,) = message.content
    assert isinstance(part, AudioPart)
    samples, rate = sound.decoded(part.data)
    assert (samples.shape, rate) == ((1, int(0.3 * RATE)), RATE)
    (whole,) = talk.send({"type": "conversation.item.retrieve", "item_id": committed["item_id"]})
    sent = np.concatenate((tone(0.1), tone(0.2))).tobytes()
    assert base64.b64decode(whole["item"]["content"][0]["audio"]) == sent
    assert refused(talk.send({"type": "input_audio_buffer.commit"}))["message"].startswith(
        "the input audio buffer is empty"
    )


def test_a_buffer_is_cleared_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_buffer, "MAX_BYTES", 4800)
    talk = Talk()
    talk.manual()
    talk.send(append(tone(0.09)))
    assert refused(talk.send(append(tone(0.02))))["code"] == "request_too_large"
    assert kinds(talk.send({"type": "input_audio_buffer.clear"}, append(tone(0.1)))) == ["input_audio_buffer.cleared"]
    assert refused(talk.send({"type": "input_audio_buffer.append", "audio": "AAAA"}))["param"] == "audio"
    assert refused(talk.send({"type": "input_audio_buffer.append", "audio": "no base64"}))["param"] == "audio"


@pytest.mark.parametrize("chunk", [7, 480, 1000, 10**6])
def test_speech_is_found_wherever_the_sound_is_cut(chunk: int) -> None:
    samples = np.concatenate((silence(0.5), tone(0.4), silence(0.3), tone(0.4), silence(1.0), tone(0.02), silence(0.6)))
    detector = EnergyDetector(threshold=0.5, silence_ms=400)
    marks = [mark for at in range(0, len(samples), chunk) for mark in detector.feed(samples[at : at + chunk])]
    assert [type(mark) for mark in marks] == [SpeechStarted, SpeechStopped], "neither a short pause nor a click counts"
    assert abs(marks[0].sample - 0.5 * RATE) <= 480
    assert abs(marks[1].sample - 2.0 * RATE) <= 960


def test_a_quiet_voice_is_heard_when_the_threshold_is_low() -> None:
    quiet = np.concatenate((tone(0.3, 0.005), silence(0.5)))
    found = {level: [*EnergyDetector(threshold=level, silence_ms=200).feed(quiet)] for level in (0.0, 0.5, 1.0)}
    assert [len(found[level]) for level in (0.0, 0.5, 1.0)] == [2, 0, 0]


@pytest.mark.parametrize("chunk", [480, 10**6])
def test_a_turn_is_committed_and_answered_when_the_speaker_falls_silent(chunk: int) -> None:
    talk, samples = Talk(), np.concatenate((silence(3.0), tone(0.5), silence(0.6)))
    effects = talk.send(*(append(samples[at : at + chunk]) for at in range(0, len(samples), chunk)))
    assert kinds(effects) == [
        "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
        "conversation.item.added", "conversation.item.done", "response.created", "StartResponse",
    ]  # fmt: skip
    assert len({effect["item_id"] for effect in effects[:3]}) == 1
    assert (effects[0]["audio_start_ms"], effects[1]["audio_end_ms"]) == (2700, 4000)
    (part,) = effects[-1].response.messages[0].content
    assert sound.decoded(part.data)[0].shape[1] == int(1.3 * RATE), "with its padding and the silence"


@pytest.mark.parametrize("interrupts", [True, False])
def test_speech_cancels_the_running_response_when_the_session_says_so(interrupts: bool) -> None:
    talk = Talk()
    vad = {"type": "server_vad", "interrupt_response": interrupts}
    talk.send({"type": "session.update", "session": {"audio": {"input": {"turn_detection": vad}}}}, text_item("hi"))
    response = talk.respond()
    talk.dialogue.text(response, "hello ")
    effects = talk.send(append(tone(0.5)))
    assert ("StopResponse" in kinds(effects)) == interrupts
    if interrupts:
        done = next(effect["response"] for effect in effects if effect.get("type") == "response.done")
        assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
        assert effects[-1] == StopResponse(response)
        assert talk.dialogue.text(response, "more") == talk.dialogue.ended(response, End("completed")) == []
        assert kinds(talk.send(append(silence(0.6))))[-1] == "StartResponse"
    else:
        assert kinds(talk.send(append(silence(0.6))))[-2:] == ["conversation.item.done", "error"]
        assert kinds(talk.dialogue.text(response, "more")) == ["response.output_audio_transcript.delta"]


def test_a_response_is_one_at_a_time_and_is_cancelled_once() -> None:
    talk = Talk()
    talk.send(text_item("hi"))
    response = talk.respond(metadata={"a": "b"})
    assert refused(talk.send(CREATE))["code"] == "request_conflict"
    assert refused(talk.send({**CANCEL, "response_id": "resp_other"}))["param"] == "response_id"
    done, stop = talk.send({**CANCEL, "response_id": f"resp_{response.rid}"})
    assert (done["response"]["status"], done["response"]["output"], stop) == ("cancelled", [], StopResponse(response))
    assert done["response"]["metadata"] == {"a": "b"}
    assert refused(talk.send(CANCEL))["code"] == "invalid_request"
    assert talk.respond().rid != response.rid


def test_a_finished_answer_is_part_of_the_next_request_until_it_is_truncated() -> None:
    talk = Talk()
    talk.send(text_item("hi"))
    response = talk.respond()
    talk.dialogue.text(response, "hello ")
    talk.dialogue.sound(response, bytes(48 * 250))
    assert (
        refused(talk.send({"type": "conversation.item.delete", "item_id": response.item.id}))["code"]
        == "request_conflict"
    )
    talk.dialogue.text(response, "you")
    events = talk.dialogue.ended(response, End("completed"), USAGE)
    assert (events[-1]["response"]["usage"], events[-1]["response"]["status"]) == (USAGE, "completed")
    again = talk.respond()
    assert again.messages[1:] == (Message(role="assistant", content="hello you"),)
    talk.dialogue.ended(again, End("failed", error=EngineError("no")))
    cut = {"type": "conversation.item.truncate", "item_id": response.item.id, "content_index": 0}
    assert refused(talk.send({**cut, "audio_end_ms": 251}))["param"] == "audio_end_ms"
    assert refused(talk.send({**cut, "audio_end_ms": 1, "content_index": 1}))["param"] == "content_index"
    assert kinds(talk.send({**cut, "audio_end_ms": 250})) == ["conversation.item.truncated"]
    assert len(talk.respond().messages) == 1, "nobody knows which words were heard"


def test_a_failed_response_tells_its_error() -> None:
    talk = Talk()
    talk.send(text_item("hi"))
    (done,) = talk.dialogue.ended(talk.respond(), End("failed", error=EngineError("broken")))
    details = done["response"]["status_details"]
    assert (details["type"], details["error"]["code"], details["error"]["message"]) == (
        "failed",
        "engine_error",
        "broken",
    )


def test_sound_is_refused_when_the_pipeline_takes_none() -> None:
    stage = StageSpec(stage_id=0, name="a", engine="transformers", final_output=True, final_output_type="text")
    talk = Talk(PipelineSpec(name="p", stages=(stage,)))
    assert talk.send(append(tone(0.5))) == [], "without turn detection nothing is said until it is committed"
    for event in (
        {"type": "input_audio_buffer.commit"},
        text_item("", content=[{"type": "input_audio", "audio": "AAAA"}]),
        {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}},
        {"type": "session.update", "session": {"output_modalities": ["audio"]}},
    ):
        assert refused(talk.send(event))["code"] == "unsupported_modality"
    error = refused(talk.send({"type": "session.update", "session": {"max_output_tokens": 5}}))
    assert error["param"] == "session.max_output_tokens", "nobody there reads it"


@pytest.mark.parametrize("wrong", [-0.1, 2.1, 1e300])
def test_temperature_out_of_range_is_refused(wrong: float) -> None:
    assert (
        refused(Talk().send({"type": "session.update", "session": {"temperature": wrong}}))["param"]
        == "session.temperature"
    )


def test_every_event_is_one_that_the_client_of_openai_reads() -> None:
    from openai.types.realtime import RealtimeServerEvent  # noqa: PLC0415 takes a second

    talk = Talk()
    effects = [*talk.dialogue.opening(), *talk.manual(output_modalities=["text"]), *talk.send(append(tone(0.1)))]
    effects += talk.send(
        {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}, text_item("x", id="x")
    )
    effects += talk.send({"type": "conversation.item.retrieve", "item_id": "x"}, {"type": "no"}, CREATE)
    response = effects[-1].response
    effects += [*talk.dialogue.text(response, "t"), *talk.dialogue.ended(response, End("completed"), USAGE)]
    events = [effect for effect in effects if isinstance(effect, dict)]
    for event in events:
        read = TypeAdapter(RealtimeServerEvent).validate_python(event)
        assert type(read).__name__ != "dict", event["type"]
        assert read.type == event["type"]  # type: ignore[union-attr]
    assert len({event["event_id"] for event in events}) == len(events)


def test_a_response_is_spoken_by_the_voice_of_its_session_or_by_its_own() -> None:
    spec = talker("p")
    speech = SpeechSpec(voices={"ash": {"pitch": 1}, "ballad": {"pitch": 2}}, speed="rate")
    *first, last = spec.stages
    spec = replace(spec, stages=(*first, replace(last, speech=speech)))
    talk = Talk(spec)
    talk.manual()
    talk.send({"type": "session.update", "session": {"audio": {"output": {"voice": "ash", "speed": 1.5}}}})
    talk.send(text_item("hello"))
    response = talk.respond()
    assert parameters(spec, response.asked)[last.name] == {"pitch": 1, "rate": 1.5}
    talk.dialogue.ended(response, End("completed"))
    asked = talk.respond(audio={"output": {"voice": {"id": "ballad"}}}).asked
    assert parameters(spec, asked)[last.name] == {"pitch": 2, "rate": 1.5}
    error = refused(talk.send({"type": "session.update", "session": {"audio": {"output": {"voice": "alloy"}}}}))
    assert (error["param"], "ash, ballad" in error["message"]) == ("session.audio.output.voice", True)
