"""The state machine of a conversation: an event of the client, or of its answer, in; events and acts out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

import pydantic_core

from omnibus.errors import InvalidRequest, OmnibusError, RequestConflict, UnsupportedModality
from omnibus.frontdoor.answers import MediaUsage
from omnibus.frontdoor.body_route import naming_fields, parse
from omnibus.frontdoor.data_urls import from_base64, from_data_url
from omnibus.frontdoor.error_answers import error_detail
from omnibus.frontdoor.realtime import client_events as client
from omnibus.frontdoor.realtime.audio_buffer import AudioBuffer, milliseconds, to_wav
from omnibus.frontdoor.realtime.items import Content, Conversation, Item
from omnibus.frontdoor.realtime.response import End, Event, Response
from omnibus.frontdoor.realtime.session_settings import (
    ResponseSettings,
    ServerVad,
    SessionSettings,
    parameters,
    takes_sound,
)
from omnibus.frontdoor.realtime.turn_detection import RATE, EnergyDetector, SpeechStarted, SpeechStopped, TurnDetector
from omnibus.pipeline.spec import PipelineSpec

_ROLES = {"input_text": ("user", "system"), "input_audio": ("user",), "input_image": ("user",)}
"""Roles whose items may have a content; those of any other content are the assistant's."""


@dataclass(frozen=True, slots=True)
class StartResponse:
    """Submit the request of this response."""

    response: Response


@dataclass(frozen=True, slots=True)
class StopResponse:
    """Cancel the request of this response."""

    response: Response


Effect = Event | StartResponse | StopResponse


class Dialogue:
    """A conversation. Each method gives its effects in order; all of them must be performed."""

    def __init__(self, spec: PipelineSpec, model: str, session_id: str) -> None:
        """`session_id` is unique, and part of the ids of all requests."""
        self.spec, self._model, self._id = spec, model, session_id
        self._settings = SessionSettings.of(spec)
        self._conversation, self._audio = Conversation(), AudioBuffer()
        self._detector: TurnDetector | None = None
        self._speech_id: str | None = None
        """Id of the item that the speech of now becomes."""
        self._running: Response | None = None
        self._made = 0
        self._listen()

    def opening(self) -> list[Effect]:
        """The first event."""
        return [*self._stamped([self._shown("session.created")])]

    def receive(self, raw: bytes) -> list[Effect]:
        """A message of the client; what is wrong with it is an error event, and changes nothing."""
        done: list[Effect] = []
        try:
            for effect in self._stamped(self._handled(parse(raw, client.ClientEvent).root)):
                done.append(effect)  # noqa: PERF402 what was done before an error stands
        except OmnibusError as error:
            done += self._stamped([{"type": "error", "error": {**error_detail(error), "event_id": _event_id(raw)}}])
        return done

    def text(self, response: Response, text: str) -> list[Effect]:
        """The next piece of the text of an answer."""
        return self._piece(response, lambda: response.text(text))

    def sound(self, response: Response, data: bytes) -> list[Effect]:
        """The next bytes of the sound of an answer."""
        return self._piece(response, lambda: response.sound(data)) if data else []

    def ended(self, response: Response, end: End, usage: MediaUsage | None = None) -> list[Effect]:
        """The end of an answer; nothing where it has ended before."""
        return [*self._stamped(self._end(end, usage))] if response is self._running else []

    def _piece(self, response: Response, events: Callable[[], Iterator[Event]]) -> list[Effect]:
        if response is not self._running:
            return []
        done: list[Effect] = [] if response.has_begun else [*self._stamped(self._begin(response))]
        return [*done, *self._stamped(events())]

    def _begin(self, response: Response) -> Iterator[Event]:
        added, part = response.opening()
        yield added
        self._conversation.add(response.item)
        yield self._item_event("added", response.item)
        yield part

    def _end(self, end: End, usage: MediaUsage | None = None) -> Iterator[Event]:
        response, self._running = self._running, None
        assert response is not None
        *events, done = response.closing(end, usage)
        yield from events
        if response.has_begun:
            yield self._item_event("done", response.item)
        yield done

    def _handled(self, event: client.ClientMessage) -> Iterator[Effect]:  # noqa: C901 a match over a closed set
        match event:
            case client.UpdateSession():
                yield self._update(event.session)
            case client.AppendAudio():
                yield from self._append(from_base64(event.audio, param="audio"))
            case client.CommitAudio():
                yield from self._commit(self._audio.end)
                self._listen()
            case client.ClearAudio():
                self._audio.drop_before(self._audio.end)
                self._listen()
                yield {"type": "input_audio_buffer.cleared"}
            case client.CreateItem():
                yield from self._added(self._item(event.item), event.previous_item_id)
            case client.RetrieveItem():
                shown = self._conversation.find(event.item_id).shown(is_whole=True)
                yield {"type": "conversation.item.retrieved", "item": shown}
            case client.DeleteItem():
                self._conversation.delete(event.item_id)
                yield {"type": "conversation.item.deleted", "item_id": event.item_id}
            case client.TruncateItem():
                self._conversation.truncate(event.item_id, event.content_index, event.audio_end_ms)
                yield {
                    "type": "conversation.item.truncated", "item_id": event.item_id,
                    "content_index": event.content_index, "audio_end_ms": event.audio_end_ms,
                }  # fmt: skip
            case client.CreateResponse():
                yield from self._respond(event.response or ResponseSettings())
            case client.CancelResponse():
                yield from self._cancel(event.response_id)
            case _:
                assert_never(event)

    def _update(self, update: SessionSettings) -> Event:
        if update.model not in (None, self._model):
            raise InvalidRequest("the model of a session does not change: open another one", param="session.model")
        settings = self._settings.updated(update)
        if settings.audio.input.turn_detection is not None:
            self._check_takes_sound()
        with naming_fields(lambda name: f"session.{name}"):
            parameters(self.spec, settings)
        had, self._settings = self._settings, settings
        if settings.audio.input.turn_detection != had.audio.input.turn_detection:
            self._listen()
        return self._shown("session.updated")

    def _append(self, data: bytes) -> Iterator[Effect]:
        samples, vad = self._audio.append(data), self._settings.audio.input.turn_detection
        if self._detector is None or vad is None:
            return
        for mark in self._detector.feed(samples):
            match mark:
                case SpeechStarted(sample):
                    yield from self._hear(sample - vad.prefix_padding_ms * RATE // 1000, vad)
                case SpeechStopped(sample):
                    yield self._speech_event("stopped", "end", sample)
                    yield from self._commit(sample)
                    if vad.create_response:
                        yield from self._respond(ResponseSettings())
        if self._speech_id is None:
            self._audio.drop_before(self._audio.end - (vad.prefix_padding_ms * RATE // 1000 + RATE))

    def _hear(self, sample: int, vad: ServerVad) -> Iterator[Effect]:
        self._audio.drop_before(sample)
        self._speech_id = self._new_id("item")
        yield self._speech_event("started", "start", max(sample, 0))
        if vad.interrupt_response and self._running is not None:
            yield from self._stop("turn_detected")

    def _commit(self, end: int) -> Iterator[Effect]:
        self._check_takes_sound()
        item_id = self._speech_id or self._new_id("item")
        if not (size := self._audio.size(end)):
            raise InvalidRequest("the input audio buffer is empty: append sound before you commit it")
        self._conversation.check_room(size)
        samples, self._speech_id = self._audio.take(end), None
        file = Content(type="input_audio", data=to_wav(samples), media_type="audio/wav")
        added, done = self._added(Item(item_id, "user", [file]))
        committed = {"type": "input_audio_buffer.committed", "item_id": item_id}
        yield from ({**committed, "previous_item_id": added["previous_item_id"]}, added, done)

    def _added(self, item: Item, previous: str | None = None) -> Iterator[Event]:
        self._conversation.check_room(item.size)
        self._conversation.add(item, previous)
        yield self._item_event("added", item)
        yield self._item_event("done", item)

    def _item(self, body: client.ItemBody) -> Item:
        content = [self._content(part, f"item.content[{index}]") for index, part in enumerate(body.content)]
        for index, part in enumerate(content):
            if body.role not in _ROLES.get(part.type, ("assistant",)):
                message = f"an item of the {body.role} has no {part.type}"
                raise InvalidRequest(message, param=f"item.content[{index}].type")
        return Item(body.id or self._new_id("item"), body.role, content)

    def _content(self, body: client.ContentBody, where: str) -> Content:
        match body:
            case client.InputSound():
                self._check_takes_sound()
                samples = from_base64(body.audio, param=f"{where}.audio")
                if len(samples) % 2:
                    raise InvalidRequest("the sound must be whole samples of 16 bits", param=f"{where}.audio")
                return Content(type=body.type, data=to_wav(samples), media_type="audio/wav")
            case client.InputImage():
                data, media_type = from_data_url(body.image_url, "image", param=f"{where}.image_url")
                return Content(type=body.type, data=data, media_type=media_type)
            case client.OutputSound():
                return Content(type=body.type, text=body.transcript)
            case _:
                return Content(type=body.type, text=body.text)

    def _respond(self, settings: ResponseSettings) -> Iterator[Effect]:
        if self._running is not None:
            raise RequestConflict(f"the response resp_{self._running.rid} is not done: wait for its end, or cancel it")
        asked = self._settings.asked(settings)
        with naming_fields(lambda name: f"response.{name}"):
            parameters(self.spec, asked)
        self._conversation.check_room(0)
        speaks = "audio" in (asked.output_modalities or ())
        item = Item(
            self._new_id("item"),
            "assistant",
            [Content(type="output_audio" if speaks else "output_text")],
            "in_progress",
        )
        self._made += 1
        messages = self._conversation.messages(asked.instructions)
        self._running = Response(f"{self._id}-{self._made}", item, asked, messages, settings.metadata)
        yield self._running.created()
        yield StartResponse(self._running)

    def _cancel(self, response_id: str | None) -> Iterator[Effect]:
        if self._running is None or response_id not in (None, f"resp_{self._running.rid}"):
            raise InvalidRequest("there is no such response to cancel", param="response_id")
        yield from self._stop("client_cancelled")

    def _stop(self, reason: str) -> Iterator[Effect]:
        stopped = self._running
        assert stopped is not None
        yield from self._end(End("cancelled", reason))
        yield StopResponse(stopped)

    def _listen(self) -> None:
        """Begin to look for turns in what comes from now on."""
        vad, self._speech_id = self._settings.audio.input.turn_detection, None
        self._detector = None
        if vad is not None:
            self._detector = EnergyDetector(
                threshold=vad.threshold, silence_ms=vad.silence_duration_ms, origin=self._audio.end
            )

    def _check_takes_sound(self) -> None:
        if not takes_sound(self.spec):
            message = f"the first stages of {self.spec.name!r} take no sound: send texts by conversation.item.create"
            raise UnsupportedModality(message, param="audio")

    def _speech_event(self, what: str, side: str, sample: int) -> Event:
        place = {f"audio_{side}_ms": milliseconds(sample), "item_id": self._speech_id}
        return {"type": f"input_audio_buffer.speech_{what}", **place}

    def _item_event(self, what: str, item: Item) -> Event:
        before = self._conversation.before(item)
        return {"type": f"conversation.item.{what}", "item": item.shown(), "previous_item_id": before}

    def _shown(self, kind: str) -> Event:
        return {"type": kind, "session": self._settings.shown(self._model, f"sess_{self._id}")}

    def _stamped(self, effects: Iterator[Effect] | list[Event]) -> Iterator[Effect]:
        for effect in effects:
            yield {"event_id": self._new_id("event"), **effect} if isinstance(effect, dict) else effect

    def _new_id(self, kind: str) -> str:
        self._made += 1
        return f"{kind}_{self._id}-{self._made}"


def _event_id(raw: bytes) -> str | None:
    """The id of an event that may be anything."""
    try:
        found = pydantic_core.from_json(raw)
    except ValueError:
        return None
    sent = found.get("event_id") if isinstance(found, dict) else None
    return sent if isinstance(sent, str) else None
