"""WebSocket `/v1/realtime`: a conversation whose responses are requests of this server, each submitted once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from omnibus.client.request_events import ClientEvent, Ended, MediaPiece, OutputArrived, TextPiece
from omnibus.errors import InvalidRequest, OmnibusError, UnsupportedModality
from omnibus.frontdoor.access import KEY_SUBPROTOCOL, RouteAccess
from omnibus.frontdoor.answers import finish_reason, stages_usage
from omnibus.frontdoor.bodies import DEFAULT_TENANT, to_json
from omnibus.frontdoor.body_route import off_loop
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import ServerFault, error_response
from omnibus.frontdoor.headers import sent_trace
from omnibus.frontdoor.live_sound import LiveSound
from omnibus.frontdoor.realtime.dialogue import Dialogue, Effect, StartResponse, StopResponse
from omnibus.frontdoor.realtime.response import End, Response
from omnibus.frontdoor.realtime.session_settings import parameters, wanted
from omnibus.frontdoor.served import Served
from omnibus.frontdoor.submitting import Accepted, abandon, in_time, with_adapter
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

_PATH = "/v1/realtime"
_SOUND = "pcm16"
_UNSUPPORTED_DATA = 1003
_INTERNAL_ERROR = 1011
router = APIRouter()
_log = get_logger(__name__)


@router.websocket(_PATH)
async def converse(socket: WebSocket) -> None:
    """Hold a conversation with the model of the query, until its client closes."""
    context: FrontDoorContext = socket.app.state.context
    try:
        served = await context.models.find(socket.query_params.get("model"))
        if not {"text", "audio"} & set(served.spec.modalities):
            raise UnsupportedModality(f"the model {served.model!r} makes neither text nor sound", param="model")
    except OmnibusError as error:
        _count(context, error.http_status)
        await socket.send_denial_response(error_response(error))
        return
    _count(context, 101)
    await socket.accept(next((name for name in socket.scope["subprotocols"] if not _is_key(name)), None))
    await _Conversation(context, socket, served).run()


@router.post(_PATH + "/{what:path}", openapi_extra=RouteAccess.USER.stated)
async def refuse_other_ways(what: str) -> None:
    """There are no ephemeral keys, and there is no WebRTC and no SIP: a 400 that names the way there is."""
    raise InvalidRequest(
        f"{_PATH}/{what} is not served: open the WebSocket {_PATH}?model=NAME with the API key itself, in Authorization or as "
        f"the subprotocol {KEY_SUBPROTOCOL}KEY, and say what you want of the session in session.update"
    )


def _count(context: FrontDoorContext, status: int) -> None:
    context.metrics.http_requests.labels(_PATH, str(status)).inc()


def _is_key(subprotocol: str) -> bool:
    return subprotocol.startswith(KEY_SUBPROTOCOL)


class _Conversation:
    """Performs what the state machine of a session decides, in order: one step at a time sends and acts.

    A client that does not read holds up its own conversation, and nothing else; the server ends its connection.
    """

    def __init__(self, context: FrontDoorContext, socket: WebSocket, served: Served) -> None:
        self.context, self.socket, self.served = context, socket, served
        self.dialogue = Dialogue(served.spec, served.model, secrets.token_hex(12))
        self._turn = asyncio.Lock()
        self._answer: _Answer | None = None

    async def run(self) -> None:
        try:
            await self.perform(self.dialogue.opening)
            while (message := await self.socket.receive())["type"] != "websocket.disconnect":
                if (text := message.get("text")) is None:
                    await self.socket.close(_UNSUPPORTED_DATA, "events are texts")
                    break
                async with self._turn:
                    raw = text.encode("utf-8", "surrogatepass")
                    await self._perform(await off_loop(len(raw), self.dialogue.receive, raw))
        except WebSocketDisconnect:
            pass
        except Exception:  # noqa: BLE001 the root of a task
            self.context.metrics.errors.labels("frontdoor").inc()
            _log.exception(LogEvent.TASK_CRASHED, where="realtime")
            with suppress(WebSocketDisconnect, RuntimeError):
                await self.socket.close(_INTERNAL_ERROR)
        finally:
            await self._stop()

    async def perform(self, step: Callable[[], Iterable[Effect]]) -> None:
        """Take a step and perform its effects before any other is taken."""
        async with self._turn:
            await self._perform(step())

    async def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartResponse(response):
                    self._answer = _Answer(self, response)
                case StopResponse():
                    await self._stop()
                case event:
                    await self.socket.send_text(to_json(event).decode())

    async def _stop(self) -> None:
        if self._answer is not None:
            await self._answer.stop()


class _Answer:
    """The request of one response, and its events on their way to the client."""

    def __init__(self, conversation: _Conversation, response: Response) -> None:
        self._conversation, self._response, self._dialogue = conversation, response, conversation.dialogue
        self._sound = LiveSound(_SOUND)
        self._following: asyncio.Task[bool] | None = None
        self._is_stopped = False
        self._task = asyncio.create_task(self._run(), name=f"response-{response.rid}")

    async def stop(self) -> None:
        """Send nothing more, and cancel the request unless it has ended; once this returns, both are so."""
        self._is_stopped = True
        if self._following is not None:
            self._following.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        """Submitting is not interrupted: afterwards it is known whether there is a request to cancel."""
        accepted, error = None, None
        try:
            accepted = await self._submit()
        except OmnibusError as refusal:
            error = refusal
        except Exception:  # noqa: BLE001 the root of a task
            error = self._crashed()
        has_ended = accepted is None
        if not self._is_stopped:
            self._following = asyncio.create_task(self._follow(accepted, error), name=f"following-{self._response.rid}")
            try:
                has_ended = await self._following
            except asyncio.CancelledError:
                if not self._is_stopped:
                    raise
        if accepted is not None and not has_ended:
            await abandon(self._conversation.context, accepted)

    async def _submit(self) -> Accepted:
        context, served = self._conversation.context, self._conversation.served
        served = await context.models.find(served.model)
        request = with_adapter(served, self._request(served.spec))
        try:
            submission = await context.producer.submit(served.spec, request, rid=self._response.rid, is_single=True)
        except OmnibusError as error:
            context.metrics.refused.labels(served.spec.name, error.code).inc()
            raise
        until = asyncio.get_running_loop().time() + submission.timeout
        return Accepted(submission, served, False, until, str)

    def _request(self, spec: PipelineSpec) -> Request:
        scope = self._conversation.socket.scope
        asked = self._response.asked
        return Request(
            messages=self._response.messages,
            modalities=wanted(spec, asked),
            sampling_params=parameters(spec, asked),
            stream=True,
            lane=spec.lane_of(0),
            tenant=scope["state"]["tenant"] or DEFAULT_TENANT,
            trace=sent_trace(scope),
        )

    async def _follow(self, accepted: Accepted | None, error: OmnibusError | None) -> bool:
        """Send the events of the request to its end; whether it has ended."""
        try:
            if accepted is not None:
                await in_time(accepted, self._pass_on(accepted))
        except OmnibusError as failure:
            error = failure
        except WebSocketDisconnect:
            return False
        except Exception:  # noqa: BLE001 the root of a task
            error = self._crashed()
        if error is not None:
            with suppress(WebSocketDisconnect):
                await self._step(self._dialogue.ended, End("failed", error=error))
        return True

    async def _pass_on(self, accepted: Accepted) -> None:
        async with aclosing(accepted.submission.batches()) as batches:
            async for events in batches:
                for event in events:
                    await self._encode(event, accepted.live_stage)

    async def _encode(self, event: ClientEvent, live: int | None) -> None:
        dialogue = self._dialogue
        match event:
            case TextPiece(stage_id, text) if stage_id == live:
                await self._step(dialogue.text, text)
            case MediaPiece():
                await self._step(dialogue.sound, await self._sound.piece(event))
            case OutputArrived(output=output) if output.modality == "audio" and self._sound.is_of(output.stage_id):
                ready = await self._sound.ready(output)
                await self._step(dialogue.sound, b"".join(ready.items[:1]))
            case Ended(result=result):
                result.raise_for_state()
                is_cut = finish_reason(result.outputs) == "length"
                end = End("incomplete", "max_output_tokens") if is_cut else End("completed")
                await self._step(dialogue.ended, end, stages_usage(result.timings))

    async def _step(self, step: Callable[..., Iterable[Effect]], *args: Any) -> None:
        await self._conversation.perform(partial(step, self._response, *args))

    def _crashed(self) -> OmnibusError:
        self._conversation.context.metrics.errors.labels("frontdoor").inc()
        _log.exception(LogEvent.TASK_CRASHED, rid=self._response.rid, where="realtime")
        return ServerFault()
