"""Single replicas taken out of service and back, or for good, while requests flow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.client.rolling_restart import ANSWER_TIMEOUT, named
from omnibus.client.rpc import ask_replica
from omnibus.errors import BrokerUnavailable, EngineError, InvalidRequest, ReplicaMissing
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.drain_orders import DrainOrders
from omnibus.registry.pause_state import PauseMode, PauseStates
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import codec
from omnibus.wire.control import Rpc


def chosen(spec: PipelineSpec, replicas: Sequence[ReplicaRecord], refs: Iterable[str]) -> list[ReplicaRecord]:
    """Replicas by `STAGE.REPLICA`, or all of a STAGE, each once and in order; of those that answer calls. Pure.

    Raises PipelineError for a stage that there is not, ReplicaMissing where nobody is meant.
    """
    found: dict[tuple[int, str], ReplicaRecord] = {}
    for ref in refs:
        stage, dot, replica = ref.partition(".")
        stage_id = spec.stage(stage).stage_id
        here = [one for one in replicas if one.stage_id == stage_id and one.listens]
        meant = [one for one in here if not dot or one.replica == replica]
        if not meant:
            known = ", ".join(f"{stage}.{one.replica}" for one in here) or "none"
            raise ReplicaMissing(
                f"no replica {ref!r} of pipeline {spec.name!r} is up; of this stage there are: {known}"
            )
        found |= {one.key: one for one in meant}
    return sorted(found.values(), key=lambda one: one.rank)


async def drain_replica(connection: Connection, spec: PipelineSpec, record: ReplicaRecord, *, timeout: float) -> None:
    """Have a replica take no more tasks; returns when it has none in hand. It stays so until `resume_replica`.

    The order is kept for the replica that its worker starts in its place, too. Idempotent. Raises ReplicaMissing when it does
    not get done within `timeout` seconds; it takes no tasks then all the same.
    """
    await DrainOrders(connection, spec.name).keep(record)
    await _call(connection, spec, record, "pause_generation", str(PauseMode.WAIT), timeout=timeout)


async def resume_replica(connection: Connection, spec: PipelineSpec, record: ReplicaRecord) -> None:
    """Have a drained replica take tasks again; idempotent. Raises InvalidRequest while its whole stage is paused."""
    paused = await PauseStates(connection, spec.name).of([record.stage_id])
    if (state := paused.get(record.stage_id)) is not None:
        raise InvalidRequest(f"stage {record.stage_id} is {state.word} as a whole: resume that", param="stage_ids")
    await DrainOrders(connection, spec.name).lift(record)
    await _call(connection, spec, record, "resume_generation", timeout=ANSWER_TIMEOUT)


async def restart_replica(connection: Connection, spec: PipelineSpec, record: ReplicaRecord) -> None:
    """Have a replica finish what it has, end, and be started again by its worker; returns once that has begun.

    Raises InvalidRequest for one that nobody would start again, ReplicaMissing for one that does not answer.
    """
    await _call(connection, spec, record, "restart", timeout=ANSWER_TIMEOUT)


async def end_replica(connection: Connection, spec: PipelineSpec, record: ReplicaRecord, *, timeout: float) -> None:
    """Have a replica finish what it has, or requeue it after its grace period, and end for good; returns when it has.

    Its worker does not start it again, and ends with its last one; an autoscaler starts another only when the queue wants it.
    What another worker starts in its place is not drained.
    Raises ReplicaMissing as `drain_replica`.
    """
    await DrainOrders(connection, spec.name).lift(record)
    async with ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout) as view:
        await _call(connection, spec, record, "leave", timeout=ANSWER_TIMEOUT)
        try:
            await view.wait_until(lambda found: not any(one.alive for one in _lives(found, record)), timeout)
        except TimeoutError as error:
            raise ReplicaMissing(
                f"{named(spec, record)} has not ended within {timeout:g} s; it takes no tasks"
            ) from error


def _lives(found: Iterable[ReplicaRecord], record: ReplicaRecord) -> list[ReplicaRecord]:
    return [one for one in found if one.instance == record.instance]


async def _call(
    connection: Connection, spec: PipelineSpec, record: ReplicaRecord, method: str, *args: Any, timeout: float
) -> None:
    order = codec.encode(Rpc(method=method, args=args))
    try:
        reply = await ask_replica(connection, spec.name, record, order, timeout)
    except BrokerUnavailable as error:
        raise ReplicaMissing(
            f"{named(spec, record)} has not done it within {timeout:g} s; it goes on with it"
        ) from error
    if reply.failure is not None:
        raise reply.failure.exception()
    if reply.error is not None:
        raise EngineError(reply.error)
