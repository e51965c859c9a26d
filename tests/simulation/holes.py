"""Holes to plant: each lost, doubled or stuck a request in a sketch of this design. With any of them a seed must fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from omnibus.broker import connection as broker_connection
from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import PubAck, Publishing
from omnibus.client import channel, producer
from omnibus.errors import RequestConflict, RevisionConflict
from omnibus.ledger import acceptance as admission
from omnibus.ledger.performer import Performer
from omnibus.ledger.records import Ledger
from omnibus.ledger.work_queue import WorkQueue
from omnibus.orchestrator import forwarding, intake, rerouting
from omnibus.orchestrator.orphan_cleanup import OrphanCleanup
from omnibus.orchestrator.rerouting import Rerouting
from omnibus.registry.death import claim_book
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.requests import advance
from omnibus.requests import record as records
from omnibus.requests.cancellations import Cancellations
from omnibus.requests.effects import Effect, Notify, SaveRecord, ScheduleDeadline
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec, subjects
from omnibus.wire.control import ClaimChange
from omnibus.wire.envelope import Event, StageResult
from omnibus.wire.out import EndNotice, OutputReady
from omnibus.workers import bundle, task_service
from omnibus.workers.assignment import Assignment
from omnibus.workers.attempt_decision import Disposition, following
from omnibus.workers.claims import Claims
from omnibus.workers.engines.protocol import MAIN, Engine, Finished, Item, Job
from omnibus.workers.execution import Execution
from omnibus.workers.task_conclusion import TaskConclusion
from tests.simulation.flow_holes import FLOW_HOLES
from tests.simulation.payload_holes import PAYLOAD_HOLES
from tests.simulation.session_holes import SESSION_HOLES

if TYPE_CHECKING:
    from tests.simulation.world import World

Patches = Iterable[tuple[Any, str, Any]]


def ack_first(_world: World) -> Patches:
    """A worker acknowledges its task, and publishes what follows from it afterwards."""

    async def publish_result(self: TaskConclusion, assignment: Assignment, result: StageResult) -> None:
        await self._ack(assignment)
        for effect in following(result):
            await self._perform(assignment, effect)

    yield TaskConclusion, "_publish_result", publish_result


def admit_on_record(_world: World) -> Patches:
    """A request counts as accepted when its record is there, before its task is."""

    async def admit(performer: Any, record: Record) -> Any:
        await performer.open(record)
        return admission.Admitted(record, attached=False)

    yield producer, "admit", admit


def trust_in_the_tick(world: World) -> Patches:
    """What was handed to the connection counts as stored, though it waits there to be written, and is lost with it."""
    # Connections break often, and nothing else loses a message: the acknowledgement leaves over the next one.
    world.faults._lost, world.faults._deaths, world.faults.strikes = 0.0, 0.0, 1.5
    real = Publishing._attempt

    async def attempt(self: Publishing) -> PubAck:
        if "Nats-Msg-Id" not in self._message["headers"]:  # a record's revision is in its acknowledgement
            return await real(self)
        self.drop()
        return PubAck()

    yield Publishing, "_attempt", attempt


def message_ids_without_run(_world: World) -> Patches:
    """Dedupe takes a re-run for a repetition."""
    yield subjects, "message_id", lambda kind, rid, stage, _run: f"{kind}.{rid}.{stage}"


def fenced_results(world: World) -> Patches:
    """Only the newest attempt's result counts, though an older one's ack may have removed the task under it."""
    real = forwarding.Forwarder._advance

    async def fenced(self: Any, event: Event) -> None:
        # Registered replicas bear ids that are not their processes' names: those seeds would fail for nothing.
        if isinstance(event, StageResult) and not world.has_registry and not world.checker.is_newest(event):
            return
        await real(self, event)

    yield forwarding.Forwarder, "_advance", fenced


def bounded_tasks(world: World) -> Patches:
    """The stream of tasks refuses when it is full, also those who must publish there before they can acknowledge."""
    world.broker.work.most = 2
    return ()


def no_nonce(_world: World) -> Patches:
    """A creation whose acknowledgement was lost is not recognised as one's own."""

    async def update(self: Bucket, key: str, data: bytes, revision: int, ttl: float | None = None) -> int:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        return await self._write(key, data, headers if ttl is None else {**headers, "Nats-TTL": str(int(ttl))})

    def check_same(existing: Record, mine: Record) -> None:
        raise RequestConflict(f"request id {mine.rid!r} is taken, {existing.state}")

    yield Bucket, "update", update
    yield admission, "check_same", check_same


def two_naks_a_claim(_world: World) -> Patches:
    """Every detector of a death requeues the dead one's tasks, not only the first."""

    async def write_down(_self: FailureDetector, dead: Any) -> Any:
        return dead

    yield FailureDetector, "_write_down", write_down


def unnoticed_claims(world: World) -> Patches:
    """Nobody notices that an announcement of claims was lost: the list goes on without what it told."""
    # It takes a replica that has two tasks in hand, the announcement of one of them lost, and dies soon after that of the other.
    world.crowd, world.faults._unreceived, world.faults.strikes = 4, 0.5, 1.5
    real = claim_book._Announced.apply

    def apply(self: Any, change: ClaimChange) -> None:
        self.number = max(self.number, change.number - 1)
        real(self, change)

    yield claim_book._Announced, "apply", apply


def nobody_home(_world: World) -> Patches:
    """Tasks that were directed to a replica that is gone stay on its lane."""

    async def run(_self: Rerouting) -> None:
        await asyncio.get_running_loop().create_future()

    yield Rerouting, "run", run


def unreadable_lanes(_world: World) -> Patches:
    """No orchestrator makes the consumer of a replica's own lane."""

    async def nothing(*_words: object) -> None:
        return

    yield rerouting, "ensure_layout", nothing


def forgetful_advance(_world: World) -> Patches:
    """An event that the record holds already has no effects: they were performed, were they not?"""
    real = advance.advance

    def decide(event: Event, record: Record | None) -> tuple[Effect, ...]:
        is_open = isinstance(event, StageResult) and record is not None and not record.state.terminal
        if is_open and advance._merge(event, record) == record:
            return ()
        return real(event, record)

    yield forwarding, "advance", decide


def no_redrive(_world: World) -> Patches:
    """A lost payload has no consequences."""
    yield advance, "_payload_lost", lambda _event, _record: ()


def notified_what_came(world: World) -> Patches:
    """A follower receives the output that an event brings, though the record holds that of another attempt."""
    # It takes a second attempt that says something else, after dedupe forgot the first, told to who missed that one.
    world.is_random = world.broker.work.forgets = True
    world.faults._unreceived, world.faults._deaths = 0.5, 0.03
    real = advance.advance

    def decide(event: Event, record: Record | None) -> tuple[Effect, ...]:
        def told(effect: Effect) -> Effect:
            match effect, event:
                case Notify(front, OutputReady(rid=rid)), StageResult(final=final) if final is not None:
                    return Notify(front, OutputReady(rid=rid, output=final))
                case Notify(front, EndNotice(outputs=outputs) as ended), StageResult(final=final) if final is not None:
                    kept = (output for output in outputs if output.stage_id != final.stage_id)
                    return Notify(front, replace(ended, outputs=(*kept, final)))
            return effect

        return tuple(told(effect) for effect in real(event, record))

    yield forwarding, "advance", decide


def record_before_deadline(world: World) -> Patches:
    """Admission creates the record first, and schedules its deadline when the tasks are out."""
    # It takes a death in between, and a stage without replicas: only its deadline ends such a request.
    world.unserved, world.faults._deaths = world.spec.stages[-1].stage_id, 0.03
    real = admission.admit

    async def admit(performer: Performer, record: Record) -> admission.Admitted:
        try:
            await performer.ledger.create(record)
        except RevisionConflict:
            return await real(performer, record)
        await performer.perform(advance.entry_tasks(record.ticket, record.ticket.created))
        await performer.perform((ScheduleDeadline(record.ticket),))
        return admission.Admitted(record, attached=False)

    yield producer, "admit", admit
    yield intake, "admit", admit


def record_without_timer(_world: World) -> Patches:
    """Admission relies on the lifetime of an open record, and sets no timer."""

    async def open_only(self: Performer, record: Record) -> int:
        return await self.ledger.create(record)

    yield Performer, "open", open_only


def blind_end_overwrites(_world: World) -> Patches:
    """An end that has read nothing is written whatever the record has become since."""

    real = Ledger.save

    async def save(self: Ledger, record: Record, revision: int, *, unread: bool = False) -> int:
        if unread:
            return await self._bucket.put(record.rid, codec.encode(record))
        return await real(self, record, revision)

    yield Ledger, "save", save


def workers_end_twice(_world: World) -> Patches:
    """A worker whose end is refused writes it over what is there, instead of asking an orchestrator."""
    real = TaskConclusion._end

    async def end(self: TaskConclusion, assignment: Assignment, result: StageResult) -> bool:
        if await real(self, assignment, result):
            return True
        if assignment.abandoned or not result.ticket.route.is_ended_by_worker(result.stage_id):
            return False
        save, *rest = advance.advance(result, Record(ticket=result.ticket))
        assert isinstance(save, SaveRecord)
        await self._performer.ledger._bucket.put(assignment.rid, codec.encode(save.record))
        await self._performer.perform(rest)
        return True

    yield TaskConclusion, "_end", end


def dropped_deadlines(_world: World) -> Patches:
    """A deadline that fires before its record is there is dropped."""

    async def precedes(_self: Any, _event: Event) -> bool:
        return False

    yield forwarding.Forwarder, "_precedes_record", precedes


def forgotten_cancellations(_world: World) -> Patches:
    """Tasks that arrive of a cancelled request are served."""
    yield Cancellations, "holds", lambda _self, *_args, **_kwargs: False


def trust_in_dedupe(_world: World) -> Patches:
    """Nobody looks whether a request has ended already: dedupe lets every result through once, does it not?"""
    real = advance.advance

    def decide(event: Event, record: Record | None) -> tuple[Effect, ...]:
        if isinstance(event, StageResult) and record is not None and record.state is RequestState.DONE:
            record = replace(record, state=RequestState.OPEN)
        return real(event, record)

    yield forwarding, "advance", decide


def no_compare_and_set(_world: World) -> Patches:
    """The last writer of a record wins."""

    async def save(self: Ledger, record: Record, _revision: int, *, unread: bool = False) -> int:
        return await self._bucket.put(record.rid, codec.encode(record))

    yield Ledger, "save", save


def shallow_purge(_world: World) -> Patches:
    """The purge of a request misses the subjects of another depth: its tasks."""

    async def purge(self: WorkQueue, rid: str, *, before: int | None = None) -> None:
        await self._purge(subjects.timers_filter(self._pipeline, rid), before)
        await self._purge(f"omni.{self._pipeline}.event.*.*.{rid}", before)

    yield WorkQueue, "purge", purge


def talking_zombies(_world: World) -> Patches:
    """A replica that missed its lease goes on as if it had not: its ack removes the task under the next one."""
    yield Assignment, "abandoned", property(lambda _self: False)
    yield Assignment, "due", property(lambda self: min(self.renew_at, self.limit))  # it heeds no lease at all


def endless_attempts(_world: World) -> Patches:
    """A task is run as often as it comes."""
    real = task_service.disposition_of

    def decided(*args: Any, **kwargs: Any) -> Disposition:
        disposition = real(*args, **kwargs)
        return Disposition.RUN if disposition is Disposition.EXHAUSTED else disposition

    yield task_service, "disposition_of", decided


def deaf_followers(_world: World) -> Patches:
    """A follower relies on the notice of the end."""
    yield channel, "READ_EVERY", 10_000.0


def trust_in_removals(_world: World) -> Patches:
    """Nobody looks whether a killed broker has anything again."""

    async def look(_self: OrphanCleanup) -> None:
        return

    yield OrphanCleanup, "_look", look


def records_expire_at_their_deadline(_world: World) -> Patches:
    """The record of an open request is kept until its deadline, and no longer: whoever ends it then is never late."""
    yield records, "OPEN_TTL", 0.0


def given_up_in_process(_world: World) -> Patches:
    """A message that was sent again while the cluster still stores it counts as refused."""
    yield broker_connection, "_PASSING", ()


def bundles_of_one(_world: World) -> Patches:
    """A bundle has ended when its main member has: nobody waits for a companion."""
    real = bundle._joined

    async def together(engine: Engine, job: Job) -> AsyncIterator[Item]:
        async for item in engine.generate(job):
            yield real({MAIN: item}) if isinstance(item, Finished) else item

    yield bundle, "_together", together


def companions_of_any_attempt(_world: World) -> Patches:
    """A companion that has ended is kept: when another member fails, the next attempt runs what is missing alone."""
    real, kept = bundle._forward, dict[tuple[str, str], Finished]()

    async def forward(engine: Engine, role: str, job: Job, made: Any) -> Finished:
        if (job.rid, role) not in kept or role == MAIN:
            kept[job.rid, role] = await real(engine, role, job, made)
        return kept[job.rid, role]

    yield bundle, "_forward", forward


def aborts_by_request(world: World) -> Patches:
    """An attempt that lost its lease aborts the next one in the same replica, too, and what that had counts as its result."""
    # Cuts and restarts alone, and many of them: a lease ends while the server has given the task to the same replica again.
    world.faults._deaths, world.faults.stalls, world.faults.strikes = 0.0, 0.0, 3.0
    yield Claims, "goes_on", lambda *_: False
    yield Execution, "_whole", lambda _self, finished: finished


HOLES: dict[str, Callable[[World], Patches]] = {
    hole.__name__: hole
    for hole in (
        ack_first, admit_on_record, trust_in_the_tick, message_ids_without_run, fenced_results, bounded_tasks,
        no_nonce, two_naks_a_claim, unnoticed_claims, nobody_home, unreadable_lanes, forgetful_advance, no_redrive,
        record_before_deadline, dropped_deadlines, forgotten_cancellations, trust_in_dedupe, no_compare_and_set,
        shallow_purge, talking_zombies, endless_attempts, deaf_followers, notified_what_came, trust_in_removals,
        records_expire_at_their_deadline, record_without_timer, blind_end_overwrites, workers_end_twice,
        given_up_in_process, bundles_of_one, companions_of_any_attempt, aborts_by_request,
        *PAYLOAD_HOLES, *FLOW_HOLES, *SESSION_HOLES,
    )
}  # fmt: skip
HOLES_IN_MEMORY = frozenset({"unswept_memory"})
"""Those that only payloads in shared memory can show."""
