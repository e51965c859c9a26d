"""Reads the sound of a stage while it is made, for one follower of the request."""

from __future__ import annotations

import numpy as np

from omnibus.client.channel import Channel, Mailbox
from omnibus.client.sound_chunk import SoundChunk
from omnibus.errors import BrokerUnavailable, DeadlineExceeded, OmnibusError
from omnibus.flows.flow_name import FlowName
from omnibus.flows.reader import FlowReader
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root
from omnibus.wire.chunk import SAMPLE_RATE, sound_in
from omnibus.wire.envelope import Ticket

log = get_logger(__name__)


async def read_sound(channel: Channel, ticket: Ticket, stage_id: int, box: Mailbox) -> None:
    """Put the chunks of a sound into a follower's mailbox, one after the other, until its end; the root of a task.

    What cannot be read is left to the output, which has all of it, and counted: a flow with a gap, one that lost a payload, one
    that went with its request while this was behind. An outage and the deadline are known elsewhere.
    """
    with task_root("sound", channel.connection.metrics, rid=ticket.rid):
        try:
            await _read(channel, ticket, stage_id, box)
        except (BrokerUnavailable, DeadlineExceeded) as error:
            log.debug(LogEvent.BROKER_ERROR, rid=ticket.rid, error=str(error))
        except OmnibusError as error:
            channel.connection.metrics.flows_skipped.labels(pipeline=ticket.pipeline).inc()
            log.warning(LogEvent.FLOW_SKIPPED, rid=ticket.rid, stage_id=stage_id, error=str(error))


async def _read(channel: Channel, ticket: Ticket, stage_id: int, box: Mailbox) -> None:
    flow = FlowName.of(ticket, stage_id, str(stage_id))
    offset = rate = 0
    async with FlowReader(channel.connection, flow, deadline=ticket.deadline, is_there=False) as reader:
        while True:
            part = await reader.read()
            offset = 0 if part.restarted else offset
            for payloads in part.chunks:
                output = sound_in(payloads)
                if output is None:
                    continue
                samples, rate = [
                    await channel.store.value(payloads[name], ticket.rid) for name in (output, SAMPLE_RATE)
                ]
                chunk = SoundChunk(stage_id, offset, samples, rate)
                offset += samples.shape[-1]
                box.put(chunk)
                await chunk.taken.wait()
            if part.end is not None:
                if offset:
                    box.put(SoundChunk(stage_id, offset, np.zeros(0, np.float32), rate, is_last=True))
                return
