"""Control messages to a replica, on core NATS: cancellations, questions for claims and texts, and calls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription
from omnibus.errors import BrokerError, InvalidRequest, Overloaded, RequestTooLarge
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.registry.pause_state import PauseMode, PauseState, PauseWatch, pause_mode
from omnibus.wire import codec, subjects
from omnibus.wire.control import AskClaims, AskSentText, AskTokens, Cancel, Control, Free, PromptTokens, Rpc, RpcReply
from omnibus.wire.failure import Failure, describe
from omnibus.workers.claims import Claims
from omnibus.workers.engines.protocol import Engine, Job, StageInput, Tokenizing
from omnibus.workers.engines.threads import within
from omnibus.workers.job_builder import default_input
from omnibus.workers.task_slots import TaskSlots
from omnibus.workers.task_telemetry import TaskTelemetry
from omnibus.workers.text_stream import DeltaStreams

RPC_TIMEOUT = 300.0
"""Seconds that a call of the engine may take; its caller waits no longer."""
MOST_CALLS = 64
"""Calls of the engine under way at the same time, and questions for tokens beside them; a caller beyond them is refused."""
SLEEP_LEVEL = 1
"""Weights leave the device and come back. Level 2 drops them, and nothing here would load them again."""
OWN_METHODS = frozenset(
    {"pause_generation", "resume_generation", "is_paused", "sleep", "wake_up", "is_sleeping", "restart", "leave"}
)
"""Methods of ControlHandlers that may be called; others are the engine's."""
_PAUSED_FROM_THE_START = PauseState(mode="")

log = get_logger(__name__)


class ControlSubscriber:
    """Receives the control messages to all replicas, and those to this one."""

    def __init__(
        self, conn: Connection, pipeline: str, stage_id: int, *,
        handlers: ControlHandlers, claims: Claims, telemetry: TaskTelemetry, streams: DeltaStreams,
        free: Callable[[str, int | None], None],
    ) -> None:  # fmt: skip
        self._conn, self._pipeline, self._stage_id = conn, pipeline, stage_id
        self._handlers, self._claims = handlers, claims
        self._telemetry, self._streams, self._free = telemetry, streams, free
        self._subscriptions: list[Subscription] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._questions: set[asyncio.Task[None]] = set()

    @property
    def listening(self) -> bool:
        return bool(self._subscriptions)

    async def listen(self) -> None:
        """Listen under the replica's present id; again after the id has changed."""
        await self._unsubscribe()
        own = (self._pipeline, self._stage_id, self._claims.replica)
        for subject, receive in (
            (subjects.ctl_all(self._pipeline), self._cancel),
            (subjects.ctl(*own), self._call),
            (subjects.ask_all(self._pipeline), self._inform),
            (subjects.ask(*own), self._inform),
        ):
            self._subscriptions.append(await self._conn.subscribe(subject, receive))

    async def close(self) -> None:
        """Stop listening; calls under way are cancelled."""
        for call in self._calls | self._questions:
            call.cancel()
        await self._unsubscribe()

    async def _unsubscribe(self) -> None:
        while self._subscriptions:
            await self._subscriptions.pop().unsubscribe()

    # Invariant: the subject is the right. Of a message, what its subject is not for is ignored: the broker lets other
    # users publish there.

    async def _cancel(self, message: ReceivedMessage) -> None:
        order: Control = codec.decode(message.data, Control)
        if isinstance(order, Cancel):
            self._claims.cancel(order)
            for rid in order.rids:
                self._free(rid, order.run)
        elif isinstance(order, Free):
            self._free(order.rid, order.run)

    async def _inform(self, message: ReceivedMessage) -> None:
        """Answer what changes nothing."""
        question: Control = codec.decode(message.data, Control)
        if isinstance(question, AskTokens):
            self._start("tokens", partial(self._tokens, question), message.reply, self._questions)
        elif isinstance(question, AskSentText) and message.reply:
            await self._streams.repeat(question.rid, question.stage_id, question.offset, message.reply)
        elif isinstance(question, AskClaims):
            self._claims.announce()
            if message.reply:
                await self._conn.publish(message.reply, codec.encode(RpcReply(replica=self._claims.replica)))

    async def _call(self, message: ReceivedMessage) -> None:
        order: Control = codec.decode(message.data, Control)
        if isinstance(order, Rpc):
            self._start(order.method, partial(self._value, order), message.reply, self._calls)

    async def _value(self, order: Rpc) -> bytes:
        return codec.pack(await self._handlers.call(order.method, order.args, order.kwargs))

    async def _tokens(self, question: AskTokens) -> bytes:
        return codec.encode(await self._handlers.tokens(question))

    def _start(
        self, name: str, call: Callable[[], Coroutine[Any, Any, bytes]], reply: str, running: set[asyncio.Task[None]]
    ) -> None:
        """Answer in a task of its own, so that a slow call delays no cancellation; a bound for each kind of `running`."""
        answering = asyncio.create_task(
            self._answer(name, call, reply, refused=len(running) >= MOST_CALLS), name=f"rpc-{name}"
        )
        running.add(answering)
        answering.add_done_callback(running.discard)

    async def _answer(
        self, name: str, call: Callable[[], Coroutine[Any, Any, bytes]], reply: str, *, refused: bool
    ) -> None:
        replica = self._claims.replica
        try:
            if refused:
                raise Overloaded(f"{MOST_CALLS} such calls are under way")  # noqa: TRY301 an answer like others
            answer = codec.encode(RpcReply(replica=replica, value=await within(RPC_TIMEOUT, call(), f"call-{name}")))
            if len(answer) > self._conn.max_payload:
                raise RequestTooLarge(f"the answer has {len(answer)} bytes")  # noqa: TRY301 as above
        except Exception as error:  # noqa: BLE001 whatever the engine raises is the caller's answer
            answer = codec.encode(RpcReply(replica=replica, error=describe(error), failure=Failure.of(error)))
        try:
            if reply:
                await self._conn.publish(reply, answer)
        except BrokerError:
            self._telemetry.crashed("rpc")


class ControlHandlers:
    """Calls of one replica, by the names that vLLM has for them."""

    def __init__(
        self, engine: Engine, slots: TaskSlots, *, leave: Callable[[], None], restart: Callable[[], None] | None = None
    ) -> None:
        """`leave` has the replica leave in order; `restart` also come back: None where nobody would start it again."""
        self._engine, self._slots, self._leave, self._come_back = engine, slots, leave, restart
        self._asleep = False
        self._turning = asyncio.Lock()
        self._applied: PauseState | None = None

    def begin(self, pause_state: PauseState | None, *, drained: bool) -> None:
        """Know what is decided for the stage before the first task can come, and whether this replica was `drained`."""
        self._slots.paused = drained or pause_state is not None
        if pause_state is not None:
            self._applied = _PAUSED_FROM_THE_START

    async def reconcile(self, pause_states: PauseWatch) -> None:
        """Follow the pause state of the whole stage, until cancelled. A replica that was called directly has done it by then."""
        while True:
            self._applied = await pause_states.other_than(self._applied)
            state = self._applied
            try:
                if state is None:
                    await self.wake_up()
                    continue
                log.warning(LogEvent.REPLICA_PAUSED, pause_state=state.word)
                await (self.sleep(mode=state.mode) if state.asleep else self.pause_generation(state.mode))
            except Exception as error:  # noqa: BLE001 whatever the engine raises: the replica must go on
                log.warning(LogEvent.REPLICA_PAUSED, pause_state=state and state.word, error=str(error))

    async def call(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Raises InvalidRequest for what does not exist or cannot be undone, and whatever the engine raises."""
        if method not in OWN_METHODS:
            return await self._engine.rpc(method, args, kwargs)
        own = getattr(self, method)
        try:
            inspect.signature(own).bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidRequest(f"{method}: {error}") from error
        return await own(*args, **kwargs)

    async def tokens(self, question: AskTokens) -> PromptTokens:
        """Raises InvalidRequest where the engine has no tokenizer, EngineRejected for a prompt that it does not take."""
        if not isinstance(self._engine, Tokenizing):
            raise InvalidRequest("this stage's engine has no tokenizer", param="model")
        given = StageInput(rid="tokens", request=question.request)
        job = Job(rid=given.rid, stage_input=given, engine_input=default_input(given), sampling={})
        return await self._engine.tokens(job, special=question.special, strings=question.strings)

    async def restart(self) -> None:
        """Return at once; the end and the new life are seen in the coordinator. Idempotent."""
        if self._come_back is None:
            raise InvalidRequest("nobody would start this replica again: it runs without a supervisor")
        self._come_back()

    async def leave(self) -> None:
        """Return at once; the replica finishes what it has, ends, and is not started again. Idempotent."""
        self._leave()

    async def pause_generation(self, mode: str = PauseMode.ABORT) -> None:
        """Return when nothing is in hand any more."""
        await self._slots.pause(pause_mode(mode))

    async def resume_generation(self) -> None:
        if self._asleep:
            raise InvalidRequest("the replica is asleep: wake it up")
        await self._slots.resume()

    async def is_paused(self) -> bool:
        return self._slots.paused

    async def is_sleeping(self) -> bool:
        return self._asleep

    async def sleep(self, level: int = SLEEP_LEVEL, mode: str = PauseMode.ABORT) -> None:
        """Pause, and let the engine sleep; takes tasks again when it cannot. Idempotent."""
        if level != SLEEP_LEVEL:
            raise InvalidRequest(f"sleep level {level} cannot be undone here; only {SLEEP_LEVEL} can", param="level")
        async with self._turning:
            if not self._asleep:
                await self._fall_asleep(pause_mode(mode))

    async def _fall_asleep(self, mode: PauseMode) -> None:
        was_paused = self._slots.paused
        await self._slots.pause(mode)
        try:
            await self._engine.rpc("sleep", (), {})
        except BaseException:
            if not was_paused:
                with suppress(InvalidRequest):  # the replica leaves; nothing else may take a cancellation's place
                    await self._slots.resume()
            raise
        self._asleep = True

    async def wake_up(self) -> None:
        """Take tasks again, also when it was paused, and did not sleep at all. Idempotent."""
        async with self._turning:
            if self._asleep:
                await self._engine.rpc("wake_up", (), {})
                self._asleep = False
            await self._slots.resume()
