"""Orders to a replica, on core NATS: cancellations, questions for claims and for texts, calls of the engine."""

from __future__ import annotations

import asyncio
from typing import Any

from omnibus.broker.connection import Connection, Message, Subscription
from omnibus.errors import BrokerError
from omnibus.requests.cancellations import Cancellations
from omnibus.wire import codec, subjects
from omnibus.wire.control import AskClaims, AskSentText, Cancel, Control, Rpc, RpcReply
from omnibus.wire.failure import Failure
from omnibus.workers.claims import Claims
from omnibus.workers.control_handlers import ControlHandlers
from omnibus.workers.sent_text import SentTexts
from omnibus.workers.task_telemetry import Journal

RPC_TIMEOUT = 300.0
"""Seconds that a call of the engine may take; its caller waits no longer."""
MOST_CALLS = 64
"""Calls of the engine under way at the same time; a caller beyond them is refused."""


class ControlSubscriber:
    """Listens to what everybody is told, and what this replica is told."""

    def __init__(
        self, conn: Connection, pipeline: str, stage_id: int, *,
        handlers: ControlHandlers, claims: Claims, cancellations: Cancellations, telemetry: Journal, sent_texts: SentTexts,
    ) -> None:  # fmt: skip
        self._conn, self._pipeline, self._stage_id = conn, pipeline, stage_id
        self._handlers, self._claims, self._cancellations = handlers, claims, cancellations
        self._telemetry, self._sent_texts = telemetry, sent_texts
        self._subscriptions: list[Subscription] = []
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def listening(self) -> bool:
        return bool(self._subscriptions)

    async def listen(self) -> None:
        """Listen under the replica's present id; again after the id has changed."""
        await self._unsubscribe()
        own = subjects.ctl(self._pipeline, self._stage_id, self._claims.replica)
        for subject in (subjects.ctl_all(self._pipeline), own):
            self._subscriptions.append(await self._conn.subscribe(subject, self._receive))

    async def close(self) -> None:
        """Stop listening; calls under way are cancelled."""
        for call in self._calls:
            call.cancel()
        await self._unsubscribe()

    async def _unsubscribe(self) -> None:
        while self._subscriptions:
            await self._subscriptions.pop().unsubscribe()

    async def _receive(self, message: Message) -> None:
        order: Control = codec.decode(message.data, Control)
        match order:
            case Cancel():
                self._cancellations.add(order.rids, order.until, run=order.run)
                self._claims.cancel(frozenset(order.rids), order.run)
            case AskClaims():
                await self._claims.announce()
            case AskSentText():
                await self._say_again(order, message.reply)
            case Rpc():
                self._call(order, message.reply)

    async def _say_again(self, order: AskSentText, reply: str) -> None:
        sent_text = self._sent_texts.of(order.rid, order.stage_id)
        if sent_text is None or not reply:
            return
        for message in sent_text.since(order.offset):
            await self._conn.publish(reply, codec.encode(message))

    def _call(self, order: Rpc, reply: str) -> None:
        """Answer in a task of its own, so that a slow call delays no cancellation."""
        call = asyncio.create_task(self._answer(order, reply), name=f"rpc-{order.method}")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _answer(self, order: Rpc, reply: str) -> None:
        try:
            answer = RpcReply(replica=self._claims.replica, value=codec.pack(await self._called(order)))
        except Exception as error:  # noqa: BLE001 whatever the engine raises is the caller's answer
            answer = RpcReply(
                replica=self._claims.replica, error=f"{type(error).__name__}: {error}", failure=Failure.of(error)
            )
        try:
            if reply:
                await self._conn.publish(reply, codec.encode(answer))
        except BrokerError:
            self._telemetry.crashed("rpc")

    async def _called(self, order: Rpc) -> Any:
        if len(self._calls) > MOST_CALLS:
            raise RuntimeError("too many calls are under way")
        async with asyncio.timeout(RPC_TIMEOUT):
            return await self._handlers.call(order.method, order.args, order.kwargs)
