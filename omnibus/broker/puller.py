"""The one puller: takes messages from durable consumers, never more than there is credit for.

Credit is the number of free slots. With one consumer, the puller keeps as many messages asked for as there is credit.
With several (lanes), a free slot asks them in order without waiting, and then parks on all; of what arrives on several
at once, the part beyond the credit is requeued.

Accounting is a consumer: `outstanding` is how many messages the server may still send. Every request ends with a message
or a status, so the count is exact while the connection lasts. A broken connection or silence (requests ask for idle
heartbeats) sets it to zero and everything is asked for anew; a message that then comes twice is requeued, never lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NoReturn, Self

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription, status_of
from omnibus.broker.delivery import Delivery
from omnibus.broker.lane import ASK_TIMEOUT, EXPIRES, FIRST_PAUSE, HEARTBEAT, Lane
from omnibus.errors import BrokerError, BrokerUnavailable
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root

_FAVOUR_EVERY = 8
_CLOSE_DEADLINE = 5.0
PARKED_SHARE = 3
"""Parked requests live this share of a lease. Invariant: those of a receiver that hangs are over before its leases are, or the
server would give it once more what others should get."""
_ENDED_BY_SERVER = ("404", "408")

Excess = Callable[[Delivery], Awaitable[None]]

log = get_logger(__name__)


class Puller:
    """Deliveries of one or more consumers of a stream, as an async iterator; an async context manager.

    `consumers` are in order of preference; every eighth time one of the `favoured` goes first, in turns, so that none of
    them starves. `step` is the least number of messages worth a request while others are outstanding: 1 for slots, more
    where throughput counts. `lease` is the consumers' ack wait, in seconds. `excess` gets the deliveries beyond the
    credit; by default they are requeued. After the context nothing is kept: deliveries that were not taken are excess too.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        consumers: Sequence[str],
        *,
        favoured: Sequence[str] = (),
        step: int = 1,
        excess: Excess = Delivery.requeue,
        lease: float = PARKED_SHARE * EXPIRES,
        label: str = "",
    ) -> None:
        self._connection = connection
        self._lanes = tuple(
            Lane(stream, name, index, expires=lease / PARKED_SHARE) for index, name in enumerate(consumers)
        )
        self._by_consumer = {lane.consumer: lane for lane in self._lanes}
        self._favoured = deque(self._by_consumer[name] for name in favoured)
        self._step, self._excess, self._label = step, excess, label or stream
        self._credit = 0
        self._slots_served = 0
        self._ready: asyncio.Queue[Delivery | Exception] = asyncio.Queue()  # bounded by the credit
        self.deliver: Callable[[Delivery], None] = self._ready.put_nowait
        """Gets each delivery, in the turn of the loop in which it arrives. With another function nothing is iterated over."""
        self._is_due = self._is_due_again = False
        self._asking: asyncio.Task[None] | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()
        self._inbox = connection.new_inbox()
        self._subscription: Subscription | None = None
        self._unhook: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        self._subscription = await self._connection.subscribe(f"{self._inbox}.*", self._receive)
        self._unhook = [self._connection.on_disconnect(self._reset), self._connection.on_reconnect(self._reset)]
        self._listen_for_silence()
        self._wake()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.withdraw()
        for unhook in self._unhook:
            unhook()
        if self._silence is not None:
            self._silence.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(_CLOSE_DEADLINE):
                await self._leave()

    def add_credit(self, slots: int = 1) -> None:
        """`slots` more messages may come."""
        self._credit += slots
        self._wake()

    def withdraw(self) -> int:
        """Take all unused credit back, to drain; returns how much it was. What still arrives is excess."""
        withdrawn, self._credit = self._credit, 0
        return withdrawn

    async def take(self) -> Delivery:
        """The next delivery; it used one credit. Waits without a deadline: a queue may stay empty."""
        item = await self._ready.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def until_failed(self) -> NoReturn:
        """Wait, and raise the fault that the puller itself comes to: for those who have set `deliver`."""
        while True:
            await self.take()

    def __aiter__(self) -> Self:
        return self

    __anext__ = take

    # Asking

    def _wake(self) -> None:
        """Ask at the end of this turn of the loop, once for all the slots that become free in it."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._pull)

    def _pull(self) -> None:
        self._is_due = False
        if self._asking is not None:
            self._is_due_again = True
            return
        if self._credit == 0 or self._subscription is None or not self._connection.connected:
            return  # credit, or the reconnect, wakes again
        if sum(lane.outstanding == 0 for lane in self._lanes) < 2:  # a lane that is parked on is known to be empty
            self._park()
            return
        self._asking = asyncio.create_task(self._guarded_ask(), name=f"pull {self._label}")
        self._asking.add_done_callback(self._asked)

    def _asked(self, _task: object) -> None:
        self._asking = None
        if self._is_due_again:
            self._is_due_again = False
            self._wake()

    async def _ask(self) -> None:
        """Give the free slots what waits already, in order of the lanes; then park."""
        turns, self._slots_served = self._slots_served, self._slots_served + self._credit
        favours = self._slots_served // _FAVOUR_EVERY - turns // _FAVOUR_EVERY
        with suppress(BrokerUnavailable):  # the connection broke meanwhile: its return wakes again
            if favours:
                await self._favour(favours)
            for lane in self._lanes:
                await self._ask_lane(lane, self._credit)
            self._park()

    async def _favour(self, slots: int) -> None:
        """Give the first of the favoured lanes that has anything these slots; the next time another begins."""
        keeps = self._credit - slots
        for lane in tuple(self._favoured):
            await self._ask_lane(lane, self._credit - keeps)
        self._favoured.rotate(-1)

    async def _ask_lane(self, lane: Lane, wanted: int) -> None:
        if min(wanted, self._credit) <= 0 or lane.outstanding or not lane.available:
            return
        answered = lane.ask(min(wanted, self._credit))
        self._send(lane)
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                await answered
        except TimeoutError:
            self._forget(lane, "no answer")

    def _send(self, lane: Lane) -> None:
        self._connection.send(lane.subject, lane.last_request, reply=f"{self._inbox}.{lane.last_token}")

    def _park(self) -> None:
        """Wait on all lanes for as many messages as there are free slots."""
        for lane in self._lanes:
            missing = self._credit - lane.outstanding
            if missing <= 0 or not lane.available or (lane.outstanding and missing < self._step):
                continue
            lane.park(missing)
            with suppress(BrokerUnavailable):  # the connection broke: its return wakes again
                self._send(lane)

    # Receiving

    def _receive(self, message: ReceivedMessage) -> None:
        if not message.reply.startswith("$JS.ACK."):
            self._on_status(message)
            return
        delivery = Delivery(self._connection, message)
        lane = self._by_consumer[delivery.consumer]
        lane.received()
        if self._credit == 0:
            self._return_excess(delivery)
            return
        self._credit -= 1
        self.deliver(delivery)
        if self._credit and not lane.outstanding:  # what `step` held back is due now
            self._wake()

    def _on_status(self, message: ReceivedMessage) -> None:
        """Statuses: 100 heartbeat, 404 nothing there, 408 expired, 409 refused or ended, 503 nobody listens."""
        token = message.subject.rpartition(".")[2]
        lane = self._lanes[int(token.partition("-")[0])]
        status = status_of(message)
        if not lane.knows(token) or status is None:
            return
        lane.received_message()
        if status == "100":
            return
        if status in _ENDED_BY_SERVER:
            pending = (message.headers or {}).get("Nats-Pending-Messages")
            lane.ended(token, int(pending) if pending is not None else None)
            self._wake()
        else:
            why = (message.headers or {}).get("Description", status)
            self._forget(lane, "nobody listens" if status == "503" else why)

    def _forget(self, lane: Lane, why: str) -> None:
        """Count nothing as asked for on this lane, and ask again, at growing intervals while it fails, which is logged once."""
        pause = lane.lost()
        self._connection.metrics.pulls_reissued.labels(stage=self._label).inc()
        report = log.info if pause == FIRST_PAUSE else log.debug
        report(LogEvent.PULL_REISSUED, consumer=lane.consumer, why=why, pause=pause)
        asyncio.get_running_loop().call_later(pause, self._try_again, lane)

    def _try_again(self, lane: Lane) -> None:
        lane.available = True
        self._wake()

    def _reset(self) -> None:
        for lane in self._lanes:
            lane.reset()
        self._wake()

    def _listen_for_silence(self) -> None:
        self._silence = asyncio.get_running_loop().call_later(HEARTBEAT, self._listen_for_silence)
        for lane in self._lanes:
            if self._connection.connected and lane.silent():
                self._forget(lane, "missed heartbeats")

    # Excess deliveries

    def _return_excess(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._guarded_excess(delivery), name=f"excess {self._label}")
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _guarded_excess(self, delivery: Delivery) -> None:
        with task_root(
            "excess", self._connection.metrics, subject=delivery.subject
        ):  # it comes again after the ack wait
            await self._excess(delivery)

    async def _leave(self) -> None:
        if (subscription := self._subscription) is not None:
            self._subscription = None
            await (subscription.drain() if self._connection.connected else subscription.unsubscribe())
        while not self._ready.empty():
            item = self._ready.get_nowait()
            if isinstance(item, Delivery):
                self._return_excess(item)
        if self._returning:
            await asyncio.wait(self._returning)

    async def _guarded_ask(self) -> None:
        try:
            await self._ask()
        except Exception as error:
            self._connection.metrics.errors.labels(where="puller").inc()
            log.exception(LogEvent.TASK_CRASHED, puller=self._label)
            self._ready.put_nowait(error)  # the next taker must know
