"""Follow one request by its messages and its record, to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from omnibus.client.assembly import Assembly
from omnibus.client.channel import Channel, Mailbox
from omnibus.client.request_events import ClientEvent, Ended
from omnibus.errors import BrokerError, BrokerUnavailable, DeadlineExceeded
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import out
from omnibus.wire.envelope import Ticket

READ_EVERY = 5.0
"""Seconds without a word after which the record is read: a lost notice hangs nobody."""
BEYOND_DEADLINE = 30.0
"""Seconds after a request's deadline by which its end must be known; only a broken system is slower."""

ASK_AGAIN = 1.0
"""Seconds after which the same question is asked again; the answer, or the question, may have been lost."""

log = get_logger(__name__)


async def follow(channel: Channel, ticket: Ticket, *, from_record: bool) -> AsyncGenerator[ClientEvent, None]:
    """Events of a request until it has ended, Ended last.

    `from_record`: look at the ledger first, for a request that others submitted. Ends without Ended when the record has
    expired. Raises PayloadLost when an output cannot be read, and DeadlineExceeded when the request is still open
    BEYOND_DEADLINE: no orchestrator runs, or none can be reached.
    """
    elsewhere = None
    if ticket.front is not None and ticket.front != channel.front:
        elsewhere = await channel.listen(ticket.front, ticket.rid)
    try:
        with channel.mailbox(ticket.rid) as box:
            gaps = Gaps(channel, ticket)
            if from_record:
                await gaps.catch_up()  # the text that was sent before we listened
                box.put(None)
            async with aclosing(_events(channel, ticket, box, gaps)) as events:
                async for event in events:
                    yield event
    finally:
        if elsewhere is not None:
            await elsewhere.unsubscribe()


async def _events(channel: Channel, ticket: Ticket, box: Mailbox, gaps: Gaps) -> AsyncGenerator[ClientEvent, None]:
    assembly = box.assembly
    until = time.monotonic() + max(ticket.deadline - channel.performer.clock.now(), 0.0) + BEYOND_DEADLINE
    while True:
        message = await _next(box)
        if isinstance(message, out.Tokens | out.Step | out.OutputReady):
            for event in await _received(channel, assembly, message, gaps):
                yield event
            continue
        if isinstance(message, out.EndNotice) and _received_all(ticket, assembly, message):
            yield Ended(channel.result(ticket, message, assembly.outputs))
            return
        record = await _read(channel, ticket.rid, until)
        if record is None:
            return
        for event in await _recorded(channel, assembly, record):
            yield event
        if record.state.terminal:
            yield Ended(await channel.resolve(record))
            return
        if time.monotonic() > until:
            raise DeadlineExceeded(
                f"request {ticket.rid!r} is still open long after its deadline: no orchestrator ends it"
            )


async def _received(
    channel: Channel, assembly: Assembly, message: out.Tokens | out.Step | out.OutputReady, gaps: Gaps
) -> list[ClientEvent]:
    match message:
        case out.Tokens():
            if assembly.lacks(message):
                await gaps.fill(message.stage_id, assembly.known(message.stage_id))
            return list(assembly.tokens(message))
        case out.Step():
            return list(assembly.step(message))
        case out.OutputReady(output=output):
            return list(assembly.output(await channel.output(output)))


def _received_all(ticket: Ticket, assembly: Assembly, ended: out.EndNotice) -> bool:
    """Whether the record has nothing to tell that was not heard: every output of a request that is done."""
    return ended.state == RequestState.DONE and len(assembly.outputs) == len(ticket.route.finals)


async def _recorded(channel: Channel, assembly: Assembly, record: Record) -> list[ClientEvent]:
    """Outputs that the record holds and that were not heard of."""
    missing = [stage for stage in sorted(record.outputs) if not assembly.knows(stage)]
    return [event for stage in missing for event in assembly.output(await channel.output(record.outputs[stage]))]


async def _read(channel: Channel, rid: str, until: float) -> Record | None:
    """The record; waits through an outage of the broker, and raises BrokerUnavailable when it lasts beyond `until`."""
    while True:
        try:
            entry = await channel.performer.ledger.read(rid)
        except BrokerUnavailable:  # which each read waits for about ten seconds itself
            if time.monotonic() > until:
                raise
            continue
        return entry.record if entry is not None else None


async def _next(box: Mailbox) -> out.Out | None:
    try:
        async with asyncio.timeout(READ_EVERY):
            return await box.get()
    except TimeoutError:
        return None


class Gaps:
    """Asks for the missing text of one request. Answers come as deltas do, and where none comes the output has it all."""

    def __init__(self, channel: Channel, ticket: Ticket) -> None:
        self._channel, self._ticket = channel, ticket
        self._asked: dict[int, tuple[int, float]] = {}

    async def catch_up(self) -> None:
        """Ask for the text that was sent before, of every text output of the request."""
        for stage in self._ticket.route.finals:
            if stage.final == "text":
                await self.fill(stage.stage_id, 0)

    async def fill(self, stage_id: int, known: int) -> None:
        """Ask for what follows the characters that are known; once, until they are more or the answer is overdue."""
        now = time.monotonic()
        before, at = self._asked.get(stage_id, (-1, 0.0))
        if before == known and now < at + ASK_AGAIN:
            return
        self._asked[stage_id] = (known, now)
        try:
            await self._channel.ask_sent_text(self._ticket.rid, stage_id, known)
        except BrokerError as error:  # the record has the truth in the end
            log.debug(LogEvent.BROKER_ERROR, rid=self._ticket.rid, error=str(error))
