"""Random graphs, random orders, crashes between any two effects, forgotten dedupe: what must hold of a request all the same.

The model has what NATS gives us: a work queue that keeps a message until it is acked, delivers it to several takers, dedupes
by id until it forgets, and a ledger with compare-and-set.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.requests.admission import Resolution, admission_effects, attach_effects, new_record, resolve
from omnibus.requests.advance import advance, cancel, linear_tasks, needs_event, needs_record
from omnibus.requests.effects import (
    CreateRecord,
    Effect,
    KeepDead,
    PublishEvent,
    PublishTask,
    Purge,
    SaveRecord,
    ScheduleDeadline,
    Stop,
    Tell,
)
from omnibus.requests.record import Record
from omnibus.wire.envelope import (
    DeadlinePassed,
    Event,
    FinalOutput,
    StageFailed,
    StageResult,
    StageTiming,
    Task,
)
from omnibus.wire.failure import Failure
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import Request

pytestmark = pytest.mark.unit
RID = "r"


@st.composite
def pipelines(draw: st.DrawFn) -> PipelineSpec:
    """A random acyclic graph of up to five stages in which every sink is final."""
    count = draw(st.sampled_from([1, 2, 3, 3, 4, 5]))
    sources = [
        draw(st.sets(st.integers(0, i - 1), min_size=draw(st.sampled_from([0, 1, 1])), max_size=3)) if i else set()
        for i in range(count)
    ]
    fed = set().union(*sources)
    stages = tuple(
        StageSpec(
            stage_id=i,
            name=f"s{i}",
            engine="sim",
            input_sources=tuple(sorted(sources[i])),
            final_output=(final := i not in fed or draw(st.booleans())),
            final_output_type=f"m{i}" if final else None,
        )
        for i in range(count)
    )
    edges = tuple(
        EdgeSpec(source=s, target=t, forwarding=draw(st.sampled_from(Forwarding)))
        for t in range(count)
        for s in sources[t]
        if len(sources[t]) == 1
    )
    return PipelineSpec(name="p", stages=stages, edges=edges)


@dataclass
class Message:
    """Something in the work queue; it stays until it is acked or purged."""

    body: Task | Event


@dataclass
class World:
    queue: list[Message] = field(default_factory=list)
    timer: DeadlinePassed | None = None
    record: Record | None = None
    revision: int = 0
    seen: set[str] = field(default_factory=set)
    terminal_runs: list[int] = field(default_factory=list)
    accepted: bool = False

    def publish(self, msg_id: str, body: Task | Event) -> None:
        if msg_id not in self.seen:
            self.seen.add(msg_id)
            self.queue.append(Message(body))

    def save(self, record: Record, revision: int) -> bool:
        if revision != self.revision:
            return False
        assert self.record is None or not self.record.state.terminal, "a terminal record was written again"
        if record.state.terminal:
            assert record.ticket.run not in self.terminal_runs, "two terminal states in one run"
            self.terminal_runs.append(record.ticket.run)
        self.record, self.revision = record, self.revision + 1
        return True


@dataclass
class Taker:
    """A shell half-way through its effects; it may die between any two."""

    world: World
    effects: list[Effect]
    message: Message | None = None
    revision: int = 0
    admits: Record | None = None
    done: bool = False


def outcome(task: Task, *, fails: str | None) -> Iterator[Effect]:
    """What a worker publishes for a task."""
    ticket, stage = task.ticket, task.ticket.route[task.stage_id]
    if fails:
        failure = Failure(code=fails, message=fails, stage_id=stage.stage_id)
        event: Event = StageFailed(
            ticket=ticket, stage_id=stage.stage_id, failure=failure, dead=fails == "engine_error"
        )
        yield PublishEvent(event, ticket.rid, stage.stage_id, ticket.run)
        return
    out = Payload.inline(b"x", TEXT)
    final = FinalOutput(stage_id=stage.stage_id, modality=stage.final, items=(out,)) if stage.final else None
    timing = StageTiming(stage.stage_id, 0.0, 0.0, 1.0)
    result = StageResult(
        ticket=ticket,
        stage_id=stage.stage_id,
        replica="x",
        outputs={"out": out},
        final=final,
        timings=(*task.timings, timing),
    )
    yield from linear_tasks(result, forwarding=Forwarding.DIRECT)
    if needs_event(ticket.route, stage.stage_id):
        yield PublishEvent(result, ticket.rid, stage.stage_id, ticket.run)


RARE = 5
rarely = st.integers(0, 9)  # ends come seldom, or nothing would ever be in the middle of its way
crashes = st.one_of(st.none(), st.integers(0, 4))
failures = st.sampled_from([None, None, None, "payload_lost", "engine_error"])


class RequestMachine(RuleBasedStateMachine):
    takers = Bundle("takers")

    @initialize(spec=pipelines(), data=st.data())
    def start(self, spec: PipelineSpec, data: st.DataObject) -> None:
        self.spec, self.world, self.nonces = spec, World(), itertools.count()
        wanted = data.draw(st.sampled_from([spec.modalities, spec.modalities, spec.modalities[-1:]]))
        self.request = Request(prompt="hello", modalities=tuple(wanted))

    # What happens

    @rule(crash=crashes, now=st.integers(0, 3))
    def submit(self, crash: int | None, now: int) -> None:
        if self.world.record is not None and self.world.record.state.terminal and not self.world.queue:
            self.world = World()  # the next request
        self._run(self._admit(now), crash)

    @rule(pick=st.integers(0, 9), crash=crashes, fails=failures)
    def take(self, pick: int, crash: int | None, fails: str | None) -> None:
        """Someone takes a message and goes through with it, or dies on the way: the message stays."""
        if self.world.queue:
            self._run(self._begin(self.world.queue[pick % len(self.world.queue)], fails), crash)

    @rule(target=takers, pick=st.integers(0, 9), fails=failures)
    def take_slowly(self, pick: int, fails: str | None) -> Taker:
        """The same, while others act in between."""
        if not self.world.queue:
            return self._admit(pick)
        return self._begin(self.world.queue[pick % len(self.world.queue)], fails)

    @rule(luck=rarely, crash=crashes)
    def abort(self, luck: int, crash: int | None) -> None:
        if self.world.record is not None and luck == RARE:
            self._run(Taker(self.world, list(cancel(self.world.record)), revision=self.world.revision), crash)

    @rule(luck=rarely)
    def fire_timer(self, luck: int) -> None:
        if self.world.timer is not None and luck == RARE:
            self.world.queue.append(Message(self.world.timer))
            self.world.timer = None

    @rule()
    def forget_dedupe(self) -> None:
        self.world.seen.clear()

    @rule(taker=takers, steps=st.integers(1, 6))
    def proceed(self, taker: Taker, steps: int) -> None:
        """Some effects further; a taker that is never chosen again has died."""
        for _ in range(steps):
            self._step(taker)

    # What must hold

    @invariant()
    def open_record_has_something_queued(self) -> None:
        record = self.world.record
        if record is None or record.state.terminal:
            return
        bodies = [message.body for message in self.world.queue]
        assert self.world.timer is not None or any(isinstance(body, DeadlinePassed) for body in bodies)
        if self.world.accepted:
            assert bodies, "accepted, open, and nothing queued"

    def teardown(self) -> None:
        """Without further faults everything drains, and an accepted request has ended."""
        for _ in range(500):
            if not self.world.queue:
                break
            self._run(self._begin(self.world.queue[0], None), None)
        assert not self.world.queue
        if self.world.accepted:
            assert self.world.record is not None
            assert self.world.record.state.terminal

    # Shells

    def _admit(self, now: float) -> Taker:
        payload, nonce = Payload.inline(b"hello", TEXT), str(next(self.nonces))
        record = new_record(self.spec, self.request, rid=RID, payload=payload, nonce=nonce, now=now, front="f")
        return Taker(self.world, list(admission_effects(record)), admits=record)

    def _run(self, taker: Taker, crash: int | None) -> None:
        """Perform all effects, or only the first `crash` ones."""
        for _ in range(100 if crash is None else crash):
            self._step(taker)

    def _begin(self, message: Message, fails: str | None) -> Taker:
        body = message.body
        if isinstance(body, Task):
            return Taker(self.world, list(outcome(body, fails=fails)), message)
        record = self.world.record if needs_record(body) else None
        return Taker(self.world, list(advance(body, record)), message, revision=self.world.revision)

    def _step(self, taker: Taker) -> None:
        if taker.done or taker.world is not self.world:
            return
        if taker.effects:
            self._perform(taker, taker.effects.pop(0))
            return
        taker.done = True
        if taker.admits is not None:
            self.world.accepted = True
        if taker.message is not None:
            self.world.queue = [message for message in self.world.queue if message is not taker.message]

    def _perform(self, taker: Taker, effect: Effect) -> None:
        world = self.world
        match effect:
            case PublishTask(task):
                assert set(task.inputs) == set(task.ticket.route[task.stage_id].sources), "inputs are missing"
                world.publish(effect.msg_id, task)
            case PublishEvent(event):
                world.publish(effect.msg_id, event)
            case ScheduleDeadline(rid, deadline):
                world.timer = DeadlinePassed(rid=rid, deadline=deadline)  # one a request: the last one counts
            case CreateRecord(record):
                self._create(taker, record)
            case SaveRecord(record):
                if not world.save(record, taker.revision):
                    self._decide_again(taker)
            case Purge():
                world.queue.clear()
                world.timer = None
            case KeepDead() | Tell() | Stop():
                pass

    def _create(self, taker: Taker, record: Record) -> None:
        world = self.world
        if world.record is None:
            assert world.save(record, world.revision)
        elif resolve(world.record, record) is Resolution.ATTACHED:
            taker.effects = list(attach_effects(world.record))

    def _decide_again(self, taker: Taker) -> None:
        world, message = self.world, taker.message
        taker.revision = world.revision
        assert world.record is not None
        if message is None:
            taker.effects = list(cancel(world.record))
        else:
            assert not isinstance(message.body, Task)
            taker.effects = list(advance(message.body, world.record))


RequestMachine.TestCase.settings = settings(
    max_examples=600, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestRequestMachine = RequestMachine.TestCase
TestRequestMachine.pytestmark = [pytest.mark.unit]
