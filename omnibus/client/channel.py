"""One producer's side of one pipeline: what it can do there, and what it hears from there."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription, status_of
from omnibus.client.assembly import Assembly
from omnibus.client.media_chunk import MediaChunk
from omnibus.client.request_events import Output, Result
from omnibus.ledger.overload import OpenRequests
from omnibus.ledger.performer import Performer, shared_lane
from omnibus.ledger.records import StoredRecord
from omnibus.payloads.store import PayloadStore
from omnibus.payloads.transports import Transports
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.choice.director import Director
from omnibus.requests.record import Record, unknown
from omnibus.requests.state import RequestState
from omnibus.wire import codec, out, subjects
from omnibus.wire.control import AskSentText
from omnibus.wire.envelope import FinalOutput, Task, Ticket

_MOST_MESSAGES = 4096
_MOST_BYTES = 8 << 20
"""Messages that wait for one follower, and their bytes."""
READ_EVERY = 5.0
"""Seconds without a message after which the record is read: a lost notice hangs nobody."""
READ_UNNOTIFIED_EVERY = 1.0
"""The same of a request whose producer does not listen, so that nobody is notified of its end."""
_EARLY = 1024
_EARLY_BYTES = 64 << 10
"""Requests whose first messages are kept for a follower that has not come yet, the oldest give way; and bytes of each."""


class Mailbox:
    """Messages of one request for one follower, and the part that the follower has delivered.

    Bounded in number and bytes. A message beyond that is dropped, and the follower looks at the record instead: a text is
    filled in from its replica or from its output. Of a sound or video one chunk is here at a time, which its reader waits for.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.assembly = Assembly()
        self.is_notified = True
        """Whether the end of the request is sent to its follower."""
        self.most_bytes = most_bytes
        self._messages: list[out.Out | MediaChunk | None] = []
        self._bytes = 0
        self._put_at = time.monotonic()
        self._news: asyncio.Future[None] | None = None
        """While the follower waits."""
        self.timer: asyncio.TimerHandle

    def put(self, message: out.Out | MediaChunk | None, size: int = 0) -> None:
        """Add a message of so many bytes, or None: look at the record."""
        self._put_at = time.monotonic()
        is_full = len(self._messages) >= _MOST_MESSAGES or self._bytes + size > self.most_bytes
        if is_full and not isinstance(message, MediaChunk):
            message, size = None, 0
        if message is None and self._messages[-1:] == [None]:
            return
        self._bytes += size
        self._messages.append(message)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def deliver(self, chunk: MediaChunk) -> None:
        """Add a chunk of a sound or video, and wait until it is taken."""
        self.put(chunk)
        await chunk.taken.wait()

    async def take(self) -> list[out.Out | MediaChunk | None]:
        """Wait for messages; all that have come, in order."""
        if not self._messages:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        taken, self._messages, self._bytes = self._messages, [], 0
        return taken

    def watch(self) -> None:
        """Have the record looked at after READ_EVERY seconds without a message. `timer` calls this; no message sets it again."""
        silence, longest = time.monotonic() - self._put_at, READ_EVERY if self.is_notified else READ_UNNOTIFIED_EVERY
        if silence >= longest:
            self.put(None)
            silence = 0.0
        self.timer = asyncio.get_running_loop().call_later(longest - silence, self.watch)


class Channel:
    """Made by `open`. Messages of a request that nobody follows are dropped, but its end is noted."""

    def __init__(self, connection: Connection, pipeline: str, front: str, transports: Transports) -> None:
        self.connection, self.pipeline, self.front = connection, pipeline, front
        self.performer = Performer(connection, pipeline, lane_of=self._lane_of)
        self.store = PayloadStore(connection, pipeline, transports)
        self.open_requests = OpenRequests(self.performer.queue, connection.clock)
        self._mailboxes: dict[str, list[Mailbox]] = defaultdict(list)
        self._early: dict[str, Mailbox] = {}
        self._subscriptions: list[Subscription] = []
        self._unhook: Callable[[], None] = lambda: None
        self._director: Director | None = None
        self._stack = AsyncExitStack()
        self._directing = asyncio.Lock()

    @classmethod
    async def open(cls, connection: Connection, pipeline: str, front: str, transports: Transports) -> Channel:
        """Listen; raises BrokerUnavailable."""
        channel = cls(connection, pipeline, front, transports)
        subject = subjects.out_all(pipeline, front)
        channel._subscriptions.append(await connection.subscribe(subject, channel.on_message))
        channel._unhook = connection.on_reconnect(channel._reconnected)
        return channel

    async def close(self) -> None:
        """Stop listening; followers find the end in the record."""
        self._unhook()
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._stack.aclose()

    async def direct(self, spec: PipelineSpec) -> None:
        """Choose replicas for the first tasks of a request as its pipeline wants; raises BrokerUnavailable."""
        async with self._directing:
            if self._director is not None and (self._director.spec is spec or self._director.spec == spec):
                return
            entries = {stage.stage_id for stage in spec.stages if not stage.input_sources}
            await self._stack.aclose()
            self._director = await self._stack.enter_async_context(Director(self.connection, spec, stages=entries))

    def _lane_of(self, task: Task) -> str:
        return self._director.lane(task) if self._director is not None else shared_lane(task)

    def expect(self, rid: str) -> None:
        """Keep what comes for a request from now on, until it is followed."""
        if len(self._early) >= _EARLY:
            self._early.pop(next(iter(self._early)))
        self._early[rid] = Mailbox(_EARLY_BYTES)

    @contextmanager
    def mailbox(self, rid: str, *, is_notified: bool = True) -> Iterator[Mailbox]:
        """Receive what comes for a request."""
        box = self._early.pop(rid, None) or Mailbox()
        box.most_bytes, box.is_notified = _MOST_BYTES, is_notified
        self._mailboxes[rid].append(box)
        box.watch()
        try:
            yield box
        finally:
            box.timer.cancel()
            self._mailboxes[rid].remove(box)
            if not self._mailboxes[rid]:
                del self._mailboxes[rid]

    async def ask_sent_text(self, rid: str, stage_id: int, offset: int) -> None:
        """Have the replica that runs this stage send its text again from there: it comes like any other. May be lost."""
        question = AskSentText(rid=rid, stage_id=stage_id, offset=offset)
        reply = subjects.out(self.pipeline, self.front, rid)
        await self.connection.publish(subjects.ask_all(self.pipeline), codec.encode(question), reply=reply)

    async def entry(self, rid: str, tenant: str | None = None) -> StoredRecord:
        """The record of a request, with its revision; raises as `known`."""
        return self.known(await self.performer.ledger.read(rid), rid, tenant)

    @staticmethod
    def known(entry: StoredRecord | None, rid: str, tenant: str | None = None) -> StoredRecord:
        """The entry itself; raises UnknownRequest for none, and for one of another `tenant` where one is given."""
        if entry is None or tenant not in (None, entry.record.tenant):
            raise unknown(rid)
        return entry

    async def resolve(self, record: Record) -> Result:
        """The result with its outputs read; raises PayloadLost."""
        if record.state.terminal:
            self.open_requests.remove(record.rid)  # its notice may have been lost
        outputs = [await self.output(record.outputs[stage]) for stage in sorted(record.outputs)]
        return self.result(record.ticket, record, tuple(one for output in outputs for one in output.each))

    def result(self, ticket: Ticket, source: Record | out.EndNotice, outputs: tuple[Output, ...]) -> Result:
        """Make the result of a request of its record, or of the notice that it is done."""
        match source:
            case Record(failure=failure, attempts=attempts):
                run = ticket.run
            case out.EndNotice(run=run):
                failure, attempts = None, ()
        return Result(
            rid=ticket.rid, pipeline=self.pipeline, state=RequestState(source.state), created=ticket.created,
            deadline=ticket.deadline, run=run, outputs=outputs, timings=source.timings, failure=failure,
            attempts=attempts, stage_ids=ticket.route.stage_ids,
        )  # fmt: skip

    async def output(self, final: FinalOutput) -> Output:
        """A final output with its bytes read; raises PayloadLost."""
        items = [bytes(await self.store.get(item)) for item in final.items]
        fields = json.loads(bytes(await self.store.get(final.fields))) if final.fields is not None else {}
        media_type = final.items[0].media_type if final.items else "application/octet-stream"
        return Output(
            stage_id=final.stage_id, modality=final.modality, media_type=media_type, items=tuple(items),
            finish_reason=final.finish_reason, usage=final.usage, segments=final.segments, fields=fields,
            also=tuple([await self.output(one) for one in final.also]),
        )  # fmt: skip

    def on_message(self, message: ReceivedMessage) -> None:
        """Take a message to this producer, or to another one that a follower listens to."""
        if status_of(message) is not None:  # nobody is there that a question about sent text could reach
            return
        received: out.Out = codec.decode(message.data, out.Out)
        if isinstance(received, out.AskReceived):
            self._send_received(received, message.reply)
            return
        if isinstance(received, out.EndNotice):
            self.open_requests.remove(received.rid)
        for box in self._boxes(received.rid):
            box.put(received, len(message.data))

    def _send_received(self, question: out.AskReceived, reply: str) -> None:
        """Answer for the follower that is furthest; without one be silent: another front may have one."""
        answers = [box.assembly.received(question.stage_id, question.fence) for box in self._boxes(question.rid)]
        known = [answer for answer in answers if answer is not None]
        data = codec.encode(out.Received(token_ids=max(known, key=len, default=())))
        if known and reply and len(data) <= self.connection.max_payload:
            self.connection.send(reply, data)

    def _boxes(self, rid: str) -> tuple[Mailbox, ...]:
        early = self._early.get(rid)
        return (*self._mailboxes.get(rid, ()), *((early,) if early is not None else ()))

    def _reconnected(self) -> None:
        for boxes in self._mailboxes.values():
            for box in boxes:
                box.put(None)
