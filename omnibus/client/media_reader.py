"""Reads the sound or the video of a stage while it is made, for one follower of the request."""

from __future__ import annotations

from dataclasses import replace

from omnibus.client.channel import Channel, Mailbox
from omnibus.client.media_chunk import MediaChunk
from omnibus.errors import BrokerUnavailable, DeadlineExceeded, OmnibusError
from omnibus.flows.flow_name import FlowName
from omnibus.flows.reader import FlowReader
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root
from omnibus.wire.chunk import RATES, media_in
from omnibus.wire.envelope import Ticket
from omnibus.wire.lazy_numpy import np

log = get_logger(__name__)


async def read_media(channel: Channel, ticket: Ticket, stage_id: int, box: Mailbox) -> None:
    """Put the chunks of a sound or a video into a follower's mailbox, one after the other, until its end; the root of a task.

    Small ones that were read together go as one: each is an event for the client. None waits for what lies elsewhere.
    What cannot be read is left to the output, which has all of it, and counted: a flow with a gap, one that lost a payload, one
    that went with its request while this was behind. An outage and the deadline are known elsewhere.
    """
    with task_root("media", channel.connection.metrics, rid=ticket.rid):
        try:
            await _read(channel, ticket, stage_id, box)
        except (BrokerUnavailable, DeadlineExceeded) as error:
            log.debug(LogEvent.BROKER_ERROR, rid=ticket.rid, error=str(error))
        except OmnibusError as error:
            channel.connection.metrics.flows_skipped.labels(pipeline=ticket.pipeline).inc()
            log.warning(LogEvent.FLOW_SKIPPED, rid=ticket.rid, stage_id=stage_id, error=str(error))


async def _read(channel: Channel, ticket: Ticket, stage_id: int, box: Mailbox) -> None:
    flow = FlowName.of(ticket, stage_id, str(stage_id))
    last = MediaChunk(stage_id, 0, np.zeros(0, np.float32), 0, is_last=True)
    async with FlowReader(channel.connection, flow, deadline=ticket.deadline, is_there=False) as reader:
        while True:
            part = await reader.read()
            last = replace(last, offset=0) if part.restarted else last
            held: MediaChunk | None = None
            for payloads in part.chunks:
                if (found := media_in(payloads)) is None:
                    continue
                values = [payloads[name] for name in (found[0], RATES[found[1]])]
                if held is not None and any(value.data is None for value in values):
                    await box.deliver(held)
                    held = None
                frames, rate = [await channel.store.value(value, ticket.rid) for value in values]
                chunk = MediaChunk(stage_id, last.offset, frames, rate, modality=found[1])
                last = replace(last, offset=chunk.end, rate=rate, modality=chunk.modality)
                joined = None if held is None else held.joined(chunk)
                if held is not None and joined is None:
                    await box.deliver(held)
                held = joined or chunk
            if held is not None:
                await box.deliver(held)
            if part.end is not None:
                if last.offset:
                    box.put(last)
                return
