"""Follow one request by its messages and its record, to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from itertools import groupby

from omnibus.client.channel import Channel, Mailbox
from omnibus.client.media_chunk import MediaChunk, piece_values
from omnibus.client.media_reader import read_media
from omnibus.client.request_events import ClientEvent, Ended, MediaPiece, Output, TextPiece
from omnibus.errors import BrokerError, BrokerUnavailable, DeadlineExceeded, OmnibusError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.route import STREAMED_MEDIA
from omnibus.requests.state import RequestState
from omnibus.wire import out, subjects
from omnibus.wire.envelope import FinalOutput, Ticket

GIVE_UP_AFTER = 30.0
"""Seconds after a request's deadline until which its end is waited for; only a broken system is slower."""

ASK_AGAIN = 1.0
"""Seconds after which the same question is asked again; the answer, or the question, may have been lost."""

log = get_logger(__name__)


async def follow(
    channel: Channel, ticket: Ticket, *, from_record: bool, with_media: bool
) -> AsyncGenerator[list[ClientEvent]]:
    """Events of a request until it has ended, Ended last: at each step all that have come; none after a silence of READ_EVERY.

    `from_record`: look at the ledger first, for a request that others submitted. `with_media`: read sound and video while they
    are made, of a request that streams. Raises UnknownRequest when its record has
    expired, PayloadLost when an output cannot be read, and DeadlineExceeded when the request is still open GIVE_UP_AFTER it:
    no orchestrator runs, or none can be reached.
    """
    elsewhere, readers = None, list[asyncio.Task[None]]()
    if ticket.front is not None and ticket.front != channel.front:
        subject = subjects.out(ticket.pipeline, ticket.front, ticket.rid)
        elsewhere = await channel.connection.subscribe(subject, channel.on_message)
    try:
        with channel.mailbox(ticket.rid, is_notified=ticket.front is not None) as box:
            follower = _Follower(channel, ticket, box, asks_on=from_record or ticket.resumable)
            readers += _media_readers(channel, ticket, box) if with_media else ()
            if from_record:
                await follower.catch_up()
                box.put(None)
            while not follower.ended:
                events: list[ClientEvent] = []
                try:
                    for message in await box.take():
                        if not follower.ended:
                            events += await follower.events(message)
                except OmnibusError:
                    yield _joined(events)
                    raise
                yield _joined(events)
    finally:
        for reader in readers:
            reader.cancel()
        if readers:
            await asyncio.wait(readers)
        if elsewhere is not None:
            await elsewhere.unsubscribe()


def _media_readers(channel: Channel, ticket: Ticket, box: Mailbox) -> Iterable[asyncio.Task[None]]:
    for stage in ticket.route.finals:
        if stage.final in STREAMED_MEDIA:
            reading = read_media(channel, ticket, stage.stage_id, box)
            yield asyncio.create_task(reading, name=f"media-{ticket.rid}")


def _joined(events: list[ClientEvent]) -> list[ClientEvent]:
    """The same events with a stage's pieces of text as one where they follow each other."""
    if len(events) < 2:
        return events
    joined: list[ClientEvent] = []
    for stage_id, group in groupby(events, lambda event: event.stage_id if isinstance(event, TextPiece) else None):
        if stage_id is None:
            joined += group
        else:
            pieces = [piece for piece in group if isinstance(piece, TextPiece)]
            joined.append(TextPiece(stage_id, "".join(piece.text for piece in pieces), pieces[-1].usage))
    return joined


def _rest(output: Output, frames: int, rate: float) -> Iterable[MediaPiece]:
    """The piece that follows so many frames at a rate; a file of another attempt may have another rate, as the piece says."""
    from omnibus.media import sound, video  # noqa: PLC0415 only sound and video load their libraries, 20 MiB

    if output.modality == "video":
        rest, its_rate = video.rest(output.items[0], frames)
    else:
        samples, its_rate = sound.rest(output.items[0], frames / rate)
        rest = samples[0] if len(samples) == 1 else samples
    if rest.size:
        yield MediaPiece(output.stage_id, output.modality, piece_values(output.modality, rest, its_rate))


class _Follower:
    """Makes events of the messages of one request.

    It asks for missing text: answers come as deltas do, and where none comes the output has it all.
    """

    def __init__(self, channel: Channel, ticket: Ticket, box: Mailbox, *, asks_on: bool) -> None:
        """`asks_on`: ask in a silence, too, for a text that nobody sends by itself, or whose sender waits for an answer."""
        self._asks_on = asks_on
        self._channel, self._ticket, self._box, self._assembly = channel, ticket, box, box.assembly
        self.ended = False
        self._until = time.monotonic() + max(ticket.deadline - channel.performer.clock.now(), 0.0) + GIVE_UP_AFTER
        self._asked: dict[int, tuple[int, float]] = {}

    async def catch_up(self) -> None:
        """Ask for the text that was sent before anybody listened, and for what comes of stages that send nothing unasked."""
        for stage in self._ticket.route.finals:
            if not self._assembly.knows(stage.stage_id):
                await self._ask_for_text(stage.stage_id)

    async def events(self, message: out.Out | MediaChunk | None) -> Iterable[ClientEvent]:
        """The events that a message brings, or the record where there is none; raises as `follow`."""
        match message:
            case out.Tokens():
                if self._assembly.lacks(message):
                    await self._ask_for_text(message.stage_id)
                return self._assembly.tokens(message)
            case out.Step():
                return self._assembly.step(message)
            case MediaChunk():
                message.taken.set()
                return self._assembly.media(message)
            case out.OutputReady(output=output):
                return await self._output(output)
            case out.EndNotice(outputs=outputs):
                events = await self._arrived(outputs)
                if not self._has_all(message):
                    return [*events, *await self._recorded()]
                self.ended = True
                return [*events, Ended(self._channel.result(self._ticket, message, self._assembly.outputs))]
        return await self._recorded()

    async def _arrived(self, outputs: Iterable[FinalOutput]) -> list[ClientEvent]:
        """The events of those outputs that were not received."""
        events: list[ClientEvent] = []
        for final in outputs:
            if not self._assembly.knows(final.stage_id):
                events += await self._output(final)
        return events

    async def _output(self, final: FinalOutput) -> list[ClientEvent]:
        """A finished output, and before it the frames that were not received of one that came in pieces."""
        output, events = await self._channel.output(final), list[ClientEvent]()
        part = self._assembly.frames_of(final.stage_id)
        if part is not None and output.items:
            events += await asyncio.to_thread(lambda: [*_rest(output, *part)])
        return [*events, *self._assembly.output(output)]

    def _has_all(self, ended: out.EndNotice) -> bool:
        """Whether the record has nothing more to tell: every output of a request that is done was received."""
        return ended.state == RequestState.DONE and all(
            self._assembly.knows(stage.stage_id) for stage in self._ticket.route.finals
        )

    async def _recorded(self) -> list[ClientEvent]:
        """The outputs in the record that were not received, and its end.

        An outage of the broker is waited for; raises BrokerUnavailable when it outlasts the request.
        """
        try:
            record = (await self._channel.entry(self._ticket.rid)).record
        except BrokerUnavailable:  # which each read waits for about ten seconds itself
            if time.monotonic() > self._until:
                raise
            self._box.put(None)
            return []
        events = await self._arrived(record.outputs[stage] for stage in sorted(record.outputs))
        if record.state.terminal:
            events.append(Ended(await self._channel.resolve(record)))
            self.ended = True
        elif time.monotonic() > self._until:
            raise DeadlineExceeded(
                f"request {record.rid!r} is still open long after its deadline: no orchestrator ends it"
            )
        elif self._asks_on:
            # Nothing shows that the end of an answer was lost, and the client may send the next segment only when it has it.
            # And a replica that has begun meanwhile sends nothing unasked of a request that was submitted without a stream.
            await self.catch_up()
        return events

    async def _ask_for_text(self, stage_id: int) -> None:
        """Ask for what follows the characters that are known; once, until they are more or the answer is overdue."""
        known, now = self._assembly.known(stage_id), time.monotonic()
        before, at = self._asked.get(stage_id, (-1, 0.0))
        if before == known and now < at + ASK_AGAIN:
            return
        self._asked[stage_id] = (known, now)
        try:
            await self._channel.ask_sent_text(self._ticket.rid, stage_id, known)
        except BrokerError as error:  # the record has the truth in the end
            log.debug(LogEvent.BROKER_ERROR, rid=self._ticket.rid, error=str(error))
