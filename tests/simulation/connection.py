"""The product's own `Connection` on the modelled broker: only the wire under it is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from omnibus.broker.connection import Connection
from omnibus.broker.replies import Answer, ReceivedMessage, Transient
from tests.simulation.broker import Wire
from tests.simulation.faults import Fate
from tests.simulation.loop import Process
from tests.simulation.metrics import SimMetrics

if TYPE_CHECKING:
    from tests.simulation.world import World

Callback = Callable[[Any], Awaitable[None] | None]


class SimSubscription:
    """Interest in a subject; messages come in order, one after the other."""

    def __init__(self, connection: SimConnection, subject: str, callback: Callback) -> None:
        self._connection, self.subject, self._callback = connection, subject, callback
        self.is_one_of_many = False
        """Whether a message goes to one subscriber only."""
        self._waiting: list[Wire] = []
        self._busy: asyncio.Task[None] | None = None

    def on_message(self, message: Wire) -> None:
        """The broker passes a message on; it may be lost, or come twice."""
        for _ in range(self._connection.world.faults.copies()):
            self._connection.arrive(lambda: self._receive(message))

    async def unsubscribe(self) -> None:
        if self in self._connection.world.broker.subscriptions:
            self._connection.world.broker.subscriptions.remove(self)

    drain = unsubscribe

    def _receive(self, message: Wire) -> None:
        self._waiting.append(message)
        if self._busy is None or self._busy.done():
            self._busy = self._connection.process.spawn(self._work_off(), "heard")

    async def _work_off(self) -> None:
        while self._waiting:
            message = self._waiting.pop(0)
            handled = self._callback(message)
            if handled is not None:
                await handled
            self._connection.world.heard(self._connection, message)


class SimConnection(Connection):
    """A client of the modelled broker. What it sends arrives in order, after a while, or is lost with the connection."""

    def __init__(self, world: World, process: Process, name: str) -> None:
        super().__init__("nats://model", name, SimMetrics(self._caught))
        self.world, self.process = world, process
        self.connected_since = world.now
        self._up.set()
        self._inboxes = 0
        self._there = self._here = 0.0  # when the last message of each direction arrives
        self._back_at = 0.0
        self._unwritten = world.faults.unwritten()
        self._broke_at = -1.0
        self._open: dict[asyncio.Future[Any], None] = {}  # in order
        self.epoch = 0

    @property
    def connected(self) -> bool:
        return self.connected_since is not None

    @property
    def max_payload(self) -> int:
        return 8 << 20

    @property
    def is_full(self) -> bool:
        return False

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"_INBOX.{self.name}-{self._inboxes}"

    async def flush(self, timeout: float = 5.0) -> None:
        """Returns when the broker has all that was sent before."""
        await self.wait_connected(timeout)
        self._check_alive()
        pong = self._asking(timeout, "no pong")
        self._arrives(lambda: self.arrive(lambda: None if pong.done() else pong.set_result(Wire(""))))
        await pong

    def send(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Core publish. While the connection is down it is kept and sent afterwards, as the real client does."""
        self._check_alive()
        faults = self.world.faults
        if faults.dies_before(self, subject):
            raise asyncio.CancelledError
        if not subject.startswith("$JS.") and faults.loses_core():
            return
        message = Wire(subject, data, headers, reply)
        self._arrives(lambda: self._core(message))

    def ask(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = 2.0
    ) -> Answer:
        self._check_alive()
        faults = self.world.faults
        if faults.dies_before(self, subject):
            raise asyncio.CancelledError
        if not self.connected:
            raise Transient(f"not connected, cannot ask {subject}")
        answer = self._asking(timeout, f"no answer on {subject}")
        fate, epoch = faults.fate(), self.epoch
        if fate is Fate.LOST:
            self._arrives(lambda: _fail(answer, "it was lost"))
        else:
            self._arrives(lambda: self._ask(answer, fate, epoch, Wire(subject, data, headers)))
        return answer

    def _asking(self, timeout: float, what: str) -> asyncio.Future[Any]:
        """An answer that is waited for: it fails after a while, and when the connection breaks."""
        answer: asyncio.Future[Any] = self.world.loop.create_future()
        self._open[answer] = None
        timer = self.world.loop.call_later(timeout, _fail, answer, f"{what} within {timeout:g} s")

        def answered(_: object) -> None:
            timer.cancel()
            self._open.pop(answer, None)

        answer.add_done_callback(answered)
        return answer

    async def _await_room(self) -> None:
        return

    async def request_many(
        self, subject: str, data: bytes, *, timeout: float = 2.0
    ) -> AsyncGenerator[ReceivedMessage, None]:  # type: ignore[override] # the same, written as a generator
        self._check_alive()
        if not self.connected or self.world.faults.fate() is not Fate.FINE:
            raise Transient("the connection broke")
        if subject.startswith("$JS."):
            await asyncio.sleep(self.world.faults.latency())
            for answer in self.world.broker.batch(subject.rpartition(".")[2], data):
                yield answer
            return
        inbox, answers = self.new_inbox(), asyncio.Queue[Wire]()
        inboxes = self.world.broker.inboxes
        inboxes[inbox] = lambda message: self.arrive(lambda: answers.put_nowait(message))
        try:
            self.world.broker.at(self._arrival(), lambda: self.world.broker.core(Wire(subject, data, None, inbox)))
            while True:
                yield await self._next(answers, subject, timeout)
        finally:
            del inboxes[inbox]

    @staticmethod
    async def _next(answers: asyncio.Queue[Wire], subject: str, timeout: float) -> Any:
        try:
            async with asyncio.timeout(timeout):
                return await answers.get()
        except TimeoutError as error:
            raise Transient(f"no further answer on {subject} within {timeout:g} s") from error

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> SimSubscription:  # type: ignore[override]
        self._check_alive()
        subscription = SimSubscription(self, subject, callback)
        subscription.is_one_of_many = queue == "host"
        self.world.broker.subscriptions.append(subscription)
        return subscription

    def cut(self, seconds: float) -> None:
        """The connection breaks, and is back after a while; what is sent meanwhile arrives then."""
        if self.process.dead or not self.connected:
            return
        self.epoch += 1
        self._broke_at = self.world.loop.time()
        self.connected_since = None
        self._up.clear()
        self._back_at = self.world.loop.time() + seconds
        self._there = max(self._there, self._back_at)
        for answer in tuple(self._open):
            _fail(answer, "the connection broke")
        self.process.context.run(self._call, self._on_disconnect)
        self.world.loop.call_at(self._back_at, self._reconnect, context=self.process.context)

    def arrive(self, work: Callable[[], None]) -> None:
        """Something comes in over the connection, in order; what is under way when it breaks is lost."""
        if self.process.dead or not self.connected:
            return
        epoch = self.epoch
        self._here = max(self._here, self.world.loop.time() + self.world.faults.latency())

        def received() -> None:
            if self.epoch == epoch and not self.process.dead:
                work()

        self.world.loop.call_at(self._here, received, context=self.process.context)

    def _arrives(self, work: Callable[[], None]) -> None:
        """Something that is sent now arrives, in order. Its last tick is lost with a connection: it was not written yet."""
        sent = self.world.loop.time()

        def arrived() -> None:
            ends = (self._broke_at, *((self.process.died_at,) if self.process.dead else ()))
            if not any(end - self._unwritten < sent <= end for end in ends):
                work()

        self.world.broker.at(self._arrival(), arrived)

    def _arrival(self) -> float:
        self._there = max(self._there, self.world.loop.time() + self.world.faults.latency())
        return self._there

    def _core(self, message: Wire) -> None:
        """Invariant: what a killed process has written before arrives all the same."""
        if message.subject.startswith("$JS.ACK."):
            if message.data[:4] != b"+WPI":
                self.world.answered(self, message)
            self.world.broker.acknowledge(message.subject, message.data)
            return
        if message.subject.startswith("$JS.API."):
            self.world.broker.handle(message.subject, message.data, message.headers)
            return
        if self.world.broker.stream_of(message.subject) is self.world.broker.chunks:
            self.world.broker.handle(message.subject, message.data, message.headers)  # a stream keeps it all the same
        self.world.broker.core(message)

    def _ask(self, answer: asyncio.Future[Any], fate: Fate, epoch: int, question: Wire) -> None:
        if self.epoch != epoch:
            return  # the connection broke with this in its buffer
        subject = question.subject
        if not subject.startswith("$JS.") and self.world.broker.stream_of(subject) is None:
            self._ask_clients(answer, subject, question.data)
            return
        reply = self.world.broker.handle(subject, question.data, question.headers)
        if ".chunk." in subject and not subject.startswith("$JS."):
            self.world.broker.core(question)  # refused or not, it rings the bells of its readers
        self.world.told(self.name, subject, reply, fate)
        if self.world.faults.dies_after(self, subject):
            return
        if fate is Fate.UNANSWERED:
            self.arrive(lambda: _fail(answer, "its answer was lost"))
        else:
            self.arrive(lambda: None if answer.done() else answer.set_result(reply))

    def _ask_clients(self, answer: asyncio.Future[Any], subject: str, data: bytes) -> None:
        """A question to other clients; at once nobody answers when nobody listens."""
        broker, inbox = self.world.broker, self.new_inbox()
        if not broker.is_heard(subject):
            self.arrive(lambda: _fail(answer, f"nobody answers on {subject}"))
            return
        broker.inboxes[inbox] = lambda message: self.arrive(
            lambda: None if answer.done() else answer.set_result(message)
        )
        broker.core(Wire(subject, data, None, inbox))

    def _reconnect(self) -> None:
        if self.process.dead:
            return
        self.generation += 1
        self.connected_since = self.world.now
        self._up.set()
        self._call(self._on_reconnect)

    @staticmethod
    def _call(hooks: list[Callable[[], None]]) -> None:
        for hook in tuple(hooks):
            hook()

    def _caught(self, error: BaseException | None) -> None:
        """The product goes on after what it did not expect; a model of it must not."""
        if not self.process.dead:
            self.world.checker.fail(f"{self.name} did not expect {error!r}")

    def _check_alive(self) -> None:
        if self.process.dead:
            raise asyncio.CancelledError


def _fail(answer: asyncio.Future[Any], reason: str) -> None:
    if not answer.done():
        answer.set_exception(Transient(reason))
