"""Rolling restarts: the replicas of a stage one after the other, while requests flow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from omnibus.broker.connection import Connection
from omnibus.client.rpc import ask_replica
from omnibus.errors import BrokerUnavailable, ReplicaMissing
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import codec
from omnibus.wire.control import Rpc

ANSWER_TIMEOUT = 10.0
"""Seconds for a replica to say that it will."""
Say = Callable[[str], None]


async def restart_replicas(
    connection: Connection, spec: PipelineSpec, stage_id: int, *, timeout: float, say: Say = lambda _line: None,
    only: Collection[str] | None = None,
) -> int:  # fmt: skip
    """Have every replica of a stage drain, end and come back, each after the one before is up again; returns how many.

    Those that are meant are the ones up at the start, or `only` these of them. Each has `timeout` seconds, in which it finishes
    its tasks, or hands them back after its grace period, and loads its engine. Requests that find no replica meanwhile wait in
    the queue.
    `say` hears of each step, a line at a time. Raises InvalidRequest for a replica that nobody would start again,
    ReplicaMissing for one that does not answer or does not come back in time; those after it are left as they are.
    """
    async with ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout) as view:
        listening = [record for record in view.replicas(stage_id) if record.listens]
        rolling = [record for record in listening if only is None or record.replica in only]
        for number, record in enumerate(rolling, 1):
            say(f"{named(spec, record)}: leaves ({number} of {len(rolling)})")
            successor = await _restart(connection, spec, view, record, timeout)
            say(f"{named(spec, successor)}: up")
    return len(rolling)


async def _restart(
    connection: Connection, spec: PipelineSpec, view: ReplicaView, record: ReplicaRecord, timeout: float
) -> ReplicaRecord:
    """The life that follows this one, once it takes tasks."""
    before = {one.instance for one in view.replicas(record.stage_id)}
    await _order(connection, spec, record)
    try:
        await view.wait_until(lambda found: bool(_successors(found, record, before)), timeout)
    except TimeoutError as error:
        now = next((one.status.value for one in view.replicas() if one.instance == record.instance), "gone")
        raise ReplicaMissing(
            f"{named(spec, record)} has not come back within {timeout:g} s: it is {now}, and nobody new is up on "
            f"{record.host}; its supervisor's log says more"
        ) from error
    return _successors(view.replicas(), record, before)[0]


async def _order(connection: Connection, spec: PipelineSpec, record: ReplicaRecord) -> None:
    order = codec.encode(Rpc(method="restart"))
    try:
        reply = await ask_replica(connection, spec.name, record, order, ANSWER_TIMEOUT)
    except BrokerUnavailable as error:
        raise ReplicaMissing(f"{named(spec, record)} does not answer: {error.message}") from error
    if reply.failure is not None:
        raise reply.failure.exception()


def _successors(found: Sequence[ReplicaRecord], record: ReplicaRecord, before: set[str]) -> list[ReplicaRecord]:
    """Find replicas that are new and up where the old one was, now that it has left."""
    if any(one.instance == record.instance and one.alive for one in found):
        return []
    return [
        one
        for one in found
        if one.instance not in before
        and one.ready
        and (one.stage_id, one.host, one.devices) == (record.stage_id, record.host, record.devices)
    ]


def named(spec: PipelineSpec, record: ReplicaRecord) -> str:
    """The name of a replica for people."""
    stage = spec.stage(record.stage_id).name
    return f"stage {record.stage_id} {stage!r} replica {record.replica} ({record.host}:{record.pid})"
