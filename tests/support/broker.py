"""Work on a real broker, in few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.broker.layout import Layout, ensure_layout, lane_consumer, layout_of
from omnibus.broker.puller import Puller
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire import stores, subjects


def describe(pipeline: str, lanes_by_stage: Mapping[int, Sequence[str]], **fields: Any) -> Layout:
    """The layout of a pipeline of these fields, but with just these lanes."""
    spec = PipelineSpec(name=pipeline, stages=(), **fields)
    bare, timeout = layout_of(spec), spec.heartbeat_timeout
    lanes = ((stage, lane) for stage, lanes in lanes_by_stage.items() for lane in lanes)
    own = (lane_consumer(pipeline, stage, lane, heartbeat_timeout=timeout) for stage, lane in lanes)
    return Layout(bare.streams, (*bare.consumers, *own))


async def lay_out(
    connection: Connection,
    pipeline: str,
    lanes_by_stage: Mapping[int, Sequence[str]] = {0: ("interactive",)},
    heartbeat_timeout: float = 10.0,
) -> None:
    """Make the streams, consumers and buckets of a pipeline."""
    await ensure_layout(connection, describe(pipeline, lanes_by_stage, heartbeat_timeout=heartbeat_timeout))


async def publish_tasks(
    connection: Connection, pipeline: str, rids: Sequence[str], lane: str = "interactive", stage: int = 0
) -> None:
    """A task for each id; its body is the id."""
    for rid in rids:
        msg_id = subjects.message_id("task", rid, stage, 0)
        await connection.js_publish(subjects.task(pipeline, stage, lane, rid), rid.encode(), msg_id)


def stage_puller(
    connection: Connection, pipeline: str, lanes: Sequence[str] = ("interactive",), stage: int = 0
) -> Puller:
    """The puller of a replica; those behind the first are favoured every eighth time."""
    names = [stores.stage_consumer(stage, lane) for lane in lanes]
    favoured = names[:0:-1]
    return Puller(connection, stores.work_stream(pipeline), names, favoured=favoured, label=f"stage {stage}")


async def queued(connection: Connection, pipeline: str) -> int:
    """Messages in the stream of work."""
    info = await connection.api(f"STREAM.INFO.{stores.work_stream(pipeline)}")
    return int(info["state"]["messages"])


async def take_all(puller: Puller, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, each acknowledged and its slot freed."""
    taken = []
    for _ in range(count):
        delivery = await puller.take()
        await delivery.ack()
        puller.add_credit()
        taken.append(delivery)
    return taken
