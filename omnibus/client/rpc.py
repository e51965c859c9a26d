"""Call every replica of some stages at once: one answer each, and a plain word about those that gave none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerUnavailable, EngineError, InvalidRequest
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus, read_replicas
from omnibus.wire import codec, subjects
from omnibus.wire.control import Rpc, RpcReply
from omnibus.wire.failure import Failure

TIMEOUT = 60.0
"""Seconds that each replica has, where the caller says nothing."""
LONGEST_TIMEOUT = 300.0
"""A replica gives a call up after so long, so nobody need wait longer."""


@dataclass(frozen=True, slots=True)
class ReplicaAnswer:
    """The answer of one replica."""

    stage_id: int
    replica: str
    value: Any = None
    failure: Failure | None = None
    """The error that it raised instead."""


@dataclass(frozen=True, slots=True)
class CollectiveAnswer:
    """The answers of all replicas that were called. Iterating gives the values, of the replicas that have one."""

    method: str
    answers: tuple[ReplicaAnswer, ...]
    """By stage and replica."""
    unanswered: tuple[tuple[int, str], ...] = ()
    """(stage id, replica) of those that did not answer in time: whether they did it is not known."""
    empty_stages: tuple[int, ...] = ()
    """Stages that were meant and have no replica."""

    @property
    def complete(self) -> bool:
        """Every stage that was meant has replicas, and each of them did it."""
        return not (self.unanswered or self.empty_stages or self.failures)

    @property
    def failures(self) -> tuple[ReplicaAnswer, ...]:
        """The answers that are errors."""
        return tuple(answer for answer in self.answers if answer.failure is not None)

    def __iter__(self) -> Iterator[Any]:
        return (answer.value for answer in self.answers if answer.failure is None)

    def raise_for_partial(self) -> None:
        """Raise the first failure, or EngineError naming who did not answer; nothing when complete."""
        for answer in self.failures:
            assert answer.failure is not None
            raise answer.failure.exception()
        missing = [f"replica {replica} of stage {stage_id}" for stage_id, replica in self.unanswered]
        missing += [f"stage {stage_id} (it has no replica)" for stage_id in self.empty_stages]
        if missing:
            raise EngineError(f"{self.method}: no answer from {', '.join(missing)}")


async def collective_rpc(
    connection: Connection,
    spec: PipelineSpec,
    method: str,
    *,
    timeout: float | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    stage_ids: Sequence[int] | None = None,
    starting: bool = False,
) -> CollectiveAnswer:
    """Call a control method of every replica of these stages (None: of all) at once; each has `timeout` seconds.

    `starting`: also of those that listen already, and whose record does not say so yet.
    Arguments are what MessagePack can hold. Raises InvalidRequest for a stage that there is not, a senseless timeout and
    arguments that cannot be sent, BrokerUnavailable when the replicas cannot be looked up. What a replica raises, and that
    one does not answer, is part of the answer.
    """
    stages = known_stages(spec, stage_ids)
    seconds = _seconds(timeout)
    order = _encoded(Rpc(method=method, args=tuple(args), kwargs=dict(kwargs or {})))
    found = await read_replicas(connection, spec.name)
    replicas = [
        record
        for record in found
        if record.stage_id in stages and (record.listens or (starting and record.status is ReplicaStatus.STARTING))
    ]
    replies = await asyncio.gather(*(_ask(connection, spec.name, record, order, seconds) for record in replicas))
    return CollectiveAnswer(
        method=method,
        answers=tuple(answer for answer in replies if answer is not None),
        unanswered=tuple(
            record.key for record, answer in zip(replicas, replies, strict=True) if answer is None and record.listens
        ),
        empty_stages=tuple(stage for stage in stages if all(record.stage_id != stage for record in replicas)),
    )


async def _ask(
    connection: Connection, pipeline: str, record: ReplicaRecord, order: bytes, timeout: float
) -> ReplicaAnswer | None:
    """Asked once: a call may have effects, so it is not repeated when the answer is lost."""
    try:
        reply = await ask_replica(connection, pipeline, record, order, timeout)
    except BrokerUnavailable:
        return None
    if reply.value is not None:
        return ReplicaAnswer(*record.key, value=codec.unpack(reply.value))
    failure = reply.failure or Failure.of(EngineError(reply.error))
    return ReplicaAnswer(*record.key, failure=failure)


async def ask_replica(
    connection: Connection, pipeline: str, record: ReplicaRecord, order: bytes, timeout: float
) -> RpcReply:
    """The reply of one replica to an encoded Rpc; raises BrokerUnavailable when it gives none within `timeout` seconds."""
    message = await connection.request(subjects.ctl(pipeline, *record.key), order, timeout=timeout)
    return codec.decode(message.data, RpcReply)


def known_stages(spec: PipelineSpec, stage_ids: Sequence[int] | None) -> tuple[int, ...]:
    """The stages that are meant, each once; raises InvalidRequest for one that there is not."""
    known = tuple(stage.stage_id for stage in spec.stages)
    if stage_ids is None:
        return known
    for stage_id in stage_ids:
        if stage_id not in known:
            raise InvalidRequest(f"pipeline {spec.name!r} has no stage {stage_id!r}", param="stage_ids")
    return tuple(dict.fromkeys(stage_ids))


def _seconds(timeout: float | None) -> float:
    seconds = TIMEOUT if timeout is None else timeout
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise InvalidRequest(f"timeout must be more than 0 and at most {LONGEST_TIMEOUT:g} s", param="timeout")
    return seconds


def _encoded(order: Rpc) -> bytes:
    try:
        return codec.encode(order)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{order.method}: arguments that cannot be sent: {error}", param="args") from error
