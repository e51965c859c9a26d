"""Requests whose attempts are used up."""

from __future__ import annotations

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.ledger.dead_letters import DeadLetters
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.record import DeadLetter
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support.flow import serving, sim
from tests.support.waiting import eventually

HELLO = Request(prompt="a red circle")


def healthy(name: str, **fields: object) -> PipelineSpec:
    """One stage, which delivers text; two attempts."""
    return PipelineSpec(
        name=name,
        stages=(sim(0, final="text"),),
        **{"max_attempts": 2, "deadline": 20.0, "heartbeat_timeout": 3.0, **fields},
    )


def faulty(spec: PipelineSpec, **engine_args: object) -> PipelineSpec:
    """The same with an engine that fails; by default always, with an error."""
    (stage,) = spec.stages
    args = {**stage.engine_args, **(engine_args or {"fail_rate": 1.0})}
    return replace(spec, stages=(replace(stage, engine_args=args),))


async def bury(connection: Connection, spec: PipelineSpec, rid: str, request: Request = HELLO) -> DeadLetter:
    """Have a request fail until its attempts are used up; returns its dead letter."""
    async with serving(connection, faulty(spec)) as producer:
        await producer.submit(spec, request, rid=rid)
        assert (await producer.wait(spec.name, rid)).state is RequestState.FAILED
        return await eventually(lambda: DeadLetters(connection, spec.name).read(rid), what="a dead letter")
