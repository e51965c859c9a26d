"""The actors: the product's own orchestrators, replicas and producers, a canceller and an operator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from omnibus.client.dead_letter_admin import DeadLetterAdmin
from omnibus.client.producer import Producer, Submission
from omnibus.client.request_events import ClientEvent
from omnibus.errors import BrokerError, BrokerUnavailable, EngineDead, OmnibusError, RequestConflict, UnknownRequest
from omnibus.orchestrator.service import OrchestratorService
from omnibus.payloads.transports import Transports
from omnibus.pipeline.spec import StageSpec
from omnibus.registry.presence.replica_record import ReplicaStatus
from omnibus.requests.state import RequestState
from omnibus.wire import subjects
from omnibus.wire.request import Request, encode_request
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.simulation.connection import SimConnection
from tests.simulation.loop import Process
from tests.simulation.replicas import SimEngine
from tests.simulation.sessions import speak

if TYPE_CHECKING:
    from tests.simulation.world import World

_ASKS = 4
"""Times that a producer which heard nothing asks again."""


def cast(world: World) -> None:
    """Start everybody."""
    for number in range(2):
        world.serve(f"orchestrator-{number}", lambda _process, connection: orchestrate(world, connection))
    for stage in world.spec.stages:
        for number in range(world.rng.choice((1, 2)) if stage.stage_id != world.unserved else 0):
            start = _starter(world, stage)
            world.serve(f"replica-{stage.stage_id}{'ab'[number]}", start)
    for number in range(world.crowd * world.rng.choice((1, 1, 2))):
        _ask(world, f"q{number}")


def _ask(world: World, rid: str) -> None:
    """One request, by one door or the other; whoever asks may ask again elsewhere, and may change its mind."""
    rng = world.rng
    is_open = world.spec.input_timeout is not None and rng.random() < 0.8
    deadline = rng.choice((None, None, None, 0.2, 1.0, 6.0))
    request = Request(prompt=f"prompt of {rid}", deadline=deadline, resumable=is_open)
    if rng.random() < 0.08:
        world.poisonous.add(rid)
    publish = publish_raw if rng.random() < 0.25 else produce
    starts = [rng.random() * 0.5]
    if rng.random() < 0.3:
        starts.append(rng.random() * 3.0)
    for number, start in enumerate(starts):
        process, connection = world.process(f"{rid}-producer-{number}")
        process.spawn(_later(start, lambda on=connection: publish(world, on, rid, request)))
    if is_open:
        speak(world, rid)
    if rng.random() < 0.15:
        process, connection = world.process(f"{rid}-canceller")
        process.spawn(_later(rng.random() * 3.0, lambda: cancel(world, connection, rid)))


async def _later(seconds: float, start: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(seconds)
    await start()


# Those who serve


async def orchestrate(world: World, connection: SimConnection) -> None:
    service = OrchestratorService(connection, world.spec)
    world.judges[connection.process] = service._claims
    await service.run()


def _starter(world: World, stage: StageSpec) -> object:
    async def start(process: Process, connection: SimConnection) -> None:
        options = ReplicaOptions(
            instance=connection.name, grace=0.5, transports=Transports(memory=world.memory(process))
        )
        replica = Replica(connection, world.spec, stage, options, engine=SimEngine(world, process, stage))
        world.replicas[process] = replica
        try:
            await replica.run()
        except EngineDead:
            world.kill(process, "of its stuck engine")
        except BrokerUnavailable:
            if replica.record.status is ReplicaStatus.UP:
                raise  # one that serves waits for the broker instead
            world.kill(process, "since the broker is away while it starts")
        else:
            world.leave(process)

    return start


# Those who ask


async def produce(world: World, connection: SimConnection, rid: str, request: Request) -> None:
    """Submit, again when no answer came, and follow to the end."""
    async with Producer(connection) as producer:
        for _ in range(_ASKS):
            try:
                submission = await producer.submit(world.spec, request, rid=rid)
            except BrokerError:
                continue
            except RequestConflict as error:
                world.checker.fail(f"{rid}: its own producer was refused: {error}")
                return
            world.accept(rid, request, connection)
            with world.waiting(rid, connection):
                events = await _followed(submission)
            world.checker.heard(rid, events)
            return


async def _followed(submission: Submission) -> list[ClientEvent]:
    async with aclosing(submission.events()) as following:
        return [event async for event in following]


async def publish_raw(world: World, connection: SimConnection, rid: str, request: Request) -> None:
    """Publish as any client in any language does; accepted with the broker's word."""
    for _ in range(_ASKS):
        try:
            await connection.js_publish(subjects.request(world.spec.name, rid), encode_request(request))
        except BrokerError:
            continue
        world.accept(rid, request, connection)
        return


async def cancel(world: World, connection: SimConnection, rid: str) -> None:
    """Change one's mind."""
    async with Producer(connection) as producer:
        for _ in range(_ASKS):
            try:
                await producer.cancel(world.spec.name, rid)
            except UnknownRequest:
                await asyncio.sleep(1.0)
            except OmnibusError:
                continue
            else:
                return


def retry_failed(world: World) -> bool:
    """Have an operator open dead letters again; whether there were any."""
    dead = [rid for rid, record in world.checker.records.items() if record.state is RequestState.FAILED]
    if not dead or world.rng.random() < 0.3:
        return False
    process, connection = world.process("operator")
    for rid in dead:
        process.spawn(retry(world, connection, rid))
    return True


async def retry(world: World, connection: SimConnection, rid: str) -> None:
    """`omnibus dead retry`: failed → open, as a new run."""
    async with Producer(connection) as producer:
        admin = await DeadLetterAdmin.open(producer, world.spec)
        world.checker.retried.add(rid)
        with suppress(OmnibusError):  # such as UnknownRequest: it failed of something that leaves no letter
            await admin.retry(rid)
