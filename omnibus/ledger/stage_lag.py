"""The lag of a stage: the number that its replicas are scaled by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from omnibus.broker.connection import Connection
from omnibus.wire import stores


async def stage_lag(connection: Connection, pipeline: str, stage_id: int, lanes: Iterable[str]) -> int:
    """Tasks of a stage on these lanes that wait or are in hand: what KEDA calls the lag of their consumers, together.

    A lane that has no consumer has none. Raises BrokerUnavailable and BrokerDenied.
    """
    stream = stores.work_stream(pipeline)
    names = [stores.stage_consumer(stage_id, lane) for lane in lanes]
    found = await asyncio.gather(*(connection.find(f"CONSUMER.INFO.{stream}.{name}") for name in names))
    return sum(one["num_pending"] + one["num_ack_pending"] for one in found if one is not None)
