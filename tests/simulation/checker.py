"""The invariants of every interleaving: checked with every write to the ledger, every task, every run and at the end."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from omnibus.client.request_events import Ended, OutputArrived, Result, SegmentFinished, TextPiece
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.death.claim_book import Held
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec
from omnibus.wire.chunk import Chunks
from omnibus.wire.control import Cancel
from omnibus.wire.envelope import StageResult, Task
from omnibus.workers.engines.protocol import Job
from tests.simulation.replicas import is_prefill
from tests.simulation.sessions import OpenInputs, ends_of, without_segments
from tests.simulation.streams import Stored, Stream

if TYPE_CHECKING:
    from omnibus.client.request_events import ClientEvent
    from tests.simulation.broker import Broker


_FLAVOUR = re.compile(r"#\d+")
CHUNK_TOKENS = 6
"""Tokens of the subject of a flow's chunks; how far they were read has one more."""


class Checker:
    """Knows the promises; collects what breaks them."""

    def __init__(self, spec: PipelineSpec, broker: Broker) -> None:
        self._spec, self._broker = spec, broker
        self.violations: list[str] = []
        self.accepted: dict[str, str] = {}
        """Accepted requests, with their prompts."""
        self.records: dict[str, Record] = {}
        """As the ledger has them."""
        self.retried: set[str] = set()
        """Requests that an operator asked to be run again."""
        self._ends: Counter[tuple[str, int]] = Counter()
        self._ended_at: dict[str, float] = {}
        """Seconds since the epoch."""
        self._notified: dict[tuple[str, int], tuple[str, tuple[str, ...]]] = {}
        self._newest: dict[tuple[str, int], str] = {}
        self._requeued: Counter[str] = Counter()
        self.ran_by: defaultdict[str, set[str]] = defaultdict(set)
        """Tasks that each replica has begun."""
        self._stopped: set[tuple[str, str]] = set()
        self.followers: dict[str, int] = {}
        """Followers that wait for the end of each request."""
        self._flows: dict[str, Chunks] = {}
        """The last message of each flow."""
        self.inputs = OpenInputs(self.fail)
        self.loses_words = False
        """Whether core messages may be lost."""

    def fail(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(what)

    def accept(self, rid: str, prompt: str) -> None:
        if self.accepted.setdefault(rid, prompt) != prompt:
            self.fail(f"{rid} was accepted with two prompts")

    # While it runs

    def stored(self, stream: Stream, stored: Stored) -> None:
        """Something was stored."""
        if stream is self._broker.ledger:
            self._written(stored)
        elif stream is self._broker.work and ".task." in stored.subject:
            self._queued(codec.decode(stored.data, Task))
        elif stream is self._broker.chunks and len(stored.subject.split(".")) == CHUNK_TOKENS:
            self._appended(stream, stored)

    def ran(self, stage: StageSpec, job: Job, replica: str) -> None:
        """A replica begins with a job."""
        self._newest[job.rid, stage.stage_id] = replica
        self.ran_by[replica].add(job.rid)
        if (replica, job.rid) in self._stopped:
            self.fail(f"{job.rid}: {replica} runs stage {stage.stage_id} and had heard that it was stopped")
        names = {self._spec.stage(source).name for source in stage.input_sources}
        if job.rid in self.inputs and not names:
            names = {"input"}
        if {*job.stage_input.sources, *job.stage_input.flows} != names:
            self.fail(f"{job.rid}: stage {stage.stage_id} runs without all of its inputs")
        if job.attempt > self._spec.max_attempts:
            self.fail(f"{job.rid}: stage {stage.stage_id} runs at attempt {job.attempt}")
        for source in map(self._spec.stage, stage.input_sources):
            if source.prompt_expand is not None:
                self._bundled(job, source)
            if is_prefill(source):
                self._handed_over(job, source)

    def _bundled(self, job: Job, source: StageSpec) -> None:
        """All members of a bundle are there, and one attempt made them."""
        main, made = job.stage_input.sources[source.name], job.stage_input.companions.get(source.name, {})
        if made.keys() != {"opposite"}:
            self.fail(f"{job.rid}: stage {source.stage_id} left the companions {sorted(made)}")
            return
        text = _FLAVOUR.sub("", made["opposite"]["text"])
        if text != f"{source.stage_id}(not {job.stage_input.request.text()})":
            self.fail(f"{job.rid}: the companion of stage {source.stage_id} said {made['opposite']['text']}")
        if made["opposite"]["by"] != main["by"]:
            self.fail(f"{job.rid}: {main['by']} made what {made['opposite']['by']} made the companion of")

    def _handed_over(self, job: Job, source: StageSpec) -> None:
        """The KV is that of the prompt: one attempt computed both."""
        made = job.stage_input.sources[source.name]
        if made["kv"]["token_ids"] != made["token_ids"]:
            prompt, of = ("".join(map(chr, ids)) for ids in (made["token_ids"], made["kv"]["token_ids"]))
            self.fail(f"{job.rid}: the KV of {of!r} came with the prompt {prompt!r}")

    def is_newest(self, result: StageResult) -> bool:
        """Whether nobody began with that stage after the one whose result it is."""
        return self._newest.get((result.ticket.rid, result.stage_id)) == result.replica

    def stopped(self, process: str, order: Cancel) -> None:
        """A process has learned that requests are over. One that failed may be opened again."""
        for rid in order.rids:
            record = self.records.get(rid)
            if record is not None and record.state in (RequestState.CANCELLED, RequestState.EXPIRED):
                self._stopped.add((process, rid))

    def marked_down(self, record: ReplicaRecord, known: Held, held: AbstractSet[str]) -> None:
        """A replica is marked down: a failure detector knows of all that its last heartbeat listed and that it still has."""
        for ack_subject in {one for _, one in record.claims} & held - {one for _, one in known}:
            self.fail(f"{record.instance}: the claim of {ack_subject} is forgotten, which its last heartbeat listed")

    def given_back(self, ack_subject: str) -> None:
        """A failure detector requeued a delivery."""
        self._requeued[ack_subject] += 1
        if self._requeued[ack_subject] > 1:
            self.fail(f"given back twice: {ack_subject}")

    def heard(self, rid: str, events: list[ClientEvent]) -> None:
        """Check the messages to one follower, until its end."""
        ended = events[-1] if events else None
        if not isinstance(ended, Ended):
            return
        self._answered(rid, ended.result)
        if ended.result.state is not RequestState.DONE:
            return
        for event in events:
            if isinstance(event, OutputArrived):
                stage = event.output.stage_id
                if event.output.text != _text_of(ended.result, stage):
                    self.fail(f"{rid}: a follower was told another output of stage {stage} than the answer's")
        if not self._is_random(ended.result):
            self._check_streams(rid, events, ended.result)

    def _written(self, stored: Stored) -> None:
        key = stored.subject.rpartition("$KV.")[2].partition(".")[2]
        if key.startswith("dead."):
            return
        if not stored.data:
            if key in self.open_ones():
                self.fail(f"{key}: its record expired while it was open")
            return
        record, before = codec.decode(stored.data, Record), self.records.get(key)
        self.records[key] = record
        if before is not None and _is_notified_more(before, record):
            return
        if before is not None and before.state.terminal:
            self._reopened(before, record)
        if record.state.terminal:
            self._ended_at[record.rid] = stored.at
            self._ended(record)

    def _reopened(self, before: Record, after: Record) -> None:
        if before.state is not RequestState.FAILED or after.state is not RequestState.OPEN:
            self.fail(f"{after.rid} went from {before.state} to {after.state}")
        elif after.rid not in self.retried:
            self.fail(f"{after.rid} was opened again, and nobody had asked for it")

    def _ended(self, record: Record) -> None:
        run = record.rid, record.ticket.run
        self._ends[run] += 1
        if self._ends[run] > 1:
            self.fail(f"{record.rid} ended twice in run {run[1]}")
        finals = {stage.stage_id for stage in record.ticket.route.finals}
        if record.state is RequestState.DONE and set(record.outputs) != finals:
            self.fail(f"{record.rid} is done without all of its outputs")

        if record.failure is not None:
            self.inputs.failed(record.rid, record.failure.code)
        if record.state is RequestState.DONE:
            for stage, output in record.outputs.items():
                self._check_whole(record.rid, stage, (output.items[0].data or b"").decode())

    def _check_whole(self, rid: str, stage: int, text: str) -> None:
        """An output names every stage that it came from, once, and each of them is of one attempt."""
        if (prompt := self.accepted.get(rid)) is None:
            return
        wanted = self._expected(stage, prompt)
        if self.inputs.answered(rid, _FLAVOUR.sub("", text)) != wanted:
            self.fail(f"{rid}: stage {stage} said {text!r} instead of {wanted!r}")
        open_ones = list[str]()
        for flavour, bracket in re.findall(r"(?:\d(#\d+)?)?(\(|\)(?:#\d+)?)", text):
            if bracket == "(":
                open_ones.append(flavour)
            elif bracket[1:] != (opened := open_ones.pop()):
                self.fail(f"{rid}: {text!r} begins with {opened} and ends with {bracket[1:]}")

    def _expected(self, stage: int, prompt: str) -> str:
        sources = sorted(self._spec.stage(source).name for source in self._spec.stage(stage).input_sources)
        given = ",".join(self._expected(self._spec.stage(name).stage_id, prompt) for name in sources)
        return f"{stage}({given or prompt})"

    def _appended(self, stream: Stream, stored: Stored) -> None:
        """A flow has chunks that follow each other, of fences that only rise.

        What is before them is what the broker has: a flow that was purged may be there again in part when it was killed. Where
        it has nothing, who still writes a flow that was purged goes on with its numbers.
        """
        chunks, found = codec.decode(stored.data, Chunks), stream.before(stored)
        before = codec.decode(found.data, Chunks) if found is not None else self._flows.get(stored.subject)
        self._flows[stored.subject] = chunks
        if chunks.restart or (before is not None and chunks.first == 0 and not chunks.offset):
            before = None  # it begins again
        if chunks.first != (before.next if before is not None else 0):
            self.fail(f"{stored.subject} has chunk {chunks.first} behind {before}")
        if before is not None and (chunks.fence < before.fence or before.end is not None):
            self.fail(f"{stored.subject}: {chunks.fence} appends behind {before.fence}")

    def _queued(self, task: Task) -> None:
        wanted = set(task.ticket.route[task.stage_id].sources)
        if {*task.inputs, *(() if task.flow is None else (task.flow,))} != wanted:
            self.fail(f"{task.ticket.rid}: a task of stage {task.stage_id} has not all of its inputs")

    def _answered(self, rid: str, result: Result) -> None:
        answer = result.state.value, tuple(output.text for output in result.outputs)
        if self._notified.setdefault((rid, result.run), answer) != answer:
            self.fail(
                f"{rid} was answered differently in run {result.run}: {self._notified[rid, result.run]}, {answer}"
            )
        if result.state is RequestState.DONE and self.accepted.get(rid) is not None:
            prompt = self.accepted[rid]
            if any(f"({prompt})" not in without_segments(output.text) for output in result.outputs):
                self.fail(f"{rid} was answered with what nobody asked for")

    def _check_streams(self, rid: str, events: list[ClientEvent], result: Result) -> None:
        for stage in {event.stage_id for event in events if isinstance(event, TextPiece)}:
            text = "".join(event.text for event in events if isinstance(event, TextPiece) and event.stage_id == stage)
            if rid in self.inputs:
                self._check_segments(rid, stage, events, result)
            if text != _text_of(result, stage):
                self.fail(f"{rid}: the stream of stage {stage} said {text!r} instead of {_text_of(result, stage)!r}")

    def _check_segments(self, rid: str, stage: int, events: list[ClientEvent], result: Result) -> None:
        """The ends of segments are where the text has them, in a stream as in the output."""
        said, heard = 0, list[int]()
        for event in events:
            if isinstance(event, TextPiece) and event.stage_id == stage:
                said += len(event.text)
            elif isinstance(event, SegmentFinished) and event.stage_id == stage:
                heard.append(said)
        first = not self._spec.stage(stage).input_sources
        wanted = ends_of(_text_of(result, stage) or "", self.accepted[rid]) if first else ()
        stored = next(output.segments for output in result.outputs if output.stage_id == stage)
        if not tuple(heard) == stored == wanted:
            self.fail(f"{rid}: segments of stage {stage} ended at {heard}, {stored} instead of {wanted}")

    @staticmethod
    def _is_random(result: Result) -> bool:
        return any("#" in output.text for output in result.outputs)

    # At the end

    def open_ones(self) -> set[str]:
        return {rid for rid, record in self.records.items() if not record.state.terminal}

    def _unending(self) -> set[str]:
        """Requests that are open, but for those that nobody was told is accepted and of which nothing is queued: they lapse."""
        queued = {stored.subject.rpartition(".")[2] for stored in self._broker.work.messages.values()}
        return {rid for rid in self.open_ones() if rid in self.accepted or rid in queued}

    def queued(self) -> list[str]:
        """Subjects of tasks, events and raw requests that wait or are in hand.

        What a killed broker has again nobody is given; it may stay for as long as its request is open.
        """
        undone, open_ones = self._broker.work.undone, self.open_ones()
        work = (
            stored
            for stored in self._broker.work.messages.values()
            if not (stored.seq in undone and stored.subject.rpartition(".")[2] in open_ones)
        )
        waiting = (*work, *self._broker.requests.messages.values())
        return [stored.subject for stored in waiting if ".timer." not in stored.subject]

    def is_settled(self) -> bool:
        """Whether everything accepted has ended and nothing is queued; timers do not count."""
        if self.queued() or any(self.followers.values()):
            return False
        return all(rid in self.records and self.records[rid].state.terminal for rid in self.accepted)

    def is_over(self) -> bool:
        """Whether nothing at all is left."""
        if any(self.followers.values()):
            return False
        return not self._broker.work.messages and not self._broker.requests.messages and not self._unending()

    def check_settled(self) -> None:
        """Healed, given time, and before any deadline: what was accepted has ended."""
        for rid in self.accepted:
            record = self.records.get(rid)
            if record is None:
                self.fail(f"{rid} was accepted, and nothing is known of it")
            elif not record.state.terminal:
                self.fail(f"{rid} was accepted, is open and goes nowhere: {self.queued() or 'nothing is queued'}")
        for rid in sorted(rid for rid, waiting in self.followers.items() if waiting):
            self.fail(f"{rid}: somebody waits for its end and is not told")
        for subject in self.queued():
            self.fail(f"stays queued: {subject}")
        for rid, record in self.records.items():
            is_dead = record.dead and record.state is RequestState.FAILED
            if record.state.terminal and self._has_dead_letter(rid) is not is_dead:
                self.fail(f"{rid} is {record.state}, dead: {record.dead}, and its letter is {'not ' * is_dead}there")

    def _has_dead_letter(self, rid: str) -> bool:
        found = self._broker.ledger.last(f"$KV.{self._broker.ledger.name.removeprefix('KV_')}.dead.{rid}")
        return found is not None and bool(found.data)

    def check_over(self, *, strict: bool, except_for: AbstractSet[str]) -> None:
        """Long after the deadlines; unless `strict`, tasks may wait for a replica to drop them.

        Those that came after the end, that is, and those of clients that died while they put an end to a request.
        """
        for rid in sorted(rid for rid, waiting in self.followers.items() if waiting):
            self.fail(f"{rid}: somebody waits for its end for ever")
        for rid in sorted(self._unending()):
            self.fail(f"{rid} is open for ever")
        for stored in (*self._broker.work.messages.values(), *self._broker.requests.messages.values()):
            rid = stored.subject.rpartition(".")[2]
            is_older = rid not in except_for and stored.at < self._ended_at.get(rid, 0.0)
            if strict or ".task." not in stored.subject or is_older:
                self.fail(f"left behind: {stored.subject}")

    def left_behind(self) -> Iterator[tuple[str, str]]:
        """(request, subject) of timers that would fire in vain, and of payloads that only the hops of what has ended needed."""
        flows = self._broker.chunks.messages.values() if self._broker.chunks is not None else ()
        for stored in (*self._broker.work.messages.values(), *self._broker.objects.messages.values(), *flows):
            tokens = stored.subject.split(".")
            match tokens:
                case ["omni", _, "timer", _, rid] if rid in self.records and self._is_timer_removed(self.records[rid]):
                    yield rid, stored.subject
                case ["omni", _, "chunk", rid, *_] if rid in self.records and self.records[rid].state.terminal:
                    yield rid, stored.subject
                case ["$O", _, "C", rid, _] if rid in self.records and self._is_freed(rid):
                    yield rid, stored.subject

    def check_left_behind(self, *, except_for: AbstractSet[str]) -> None:
        """To be asked when late processes have found that out, and not of requests whose clients stopped half-way."""
        for rid, subject in self.left_behind():
            if rid not in except_for:
                self.fail(f"left behind: {subject}")

    def _is_timer_removed(self, record: Record) -> bool:
        """Whether an ended request has no timer any more; a worker's word about it may be lost, and then it fires in vain."""
        finals = record.ticket.route.finals
        by_worker = any(record.ticket.route.is_ended_by_worker(stage.stage_id) for stage in finals)
        return record.state.terminal and not (self.loses_words and record.state is RequestState.DONE and by_worker)

    def _is_freed(self, rid: str) -> bool:
        return self.records[rid].state in (RequestState.DONE, RequestState.CANCELLED, RequestState.EXPIRED)


def _is_notified_more(before: Record, after: Record) -> bool:
    """Whether a failed one only has more of its history: news of an attempt that were late."""
    if before.state is not RequestState.FAILED or after.state is not RequestState.FAILED:
        return False
    return (before.ticket.run, before.failure, before.outputs) == (after.ticket.run, after.failure, after.outputs)


def _text_of(result: Result, stage: int) -> str | None:
    return next((output.text for output in result.outputs if output.stage_id == stage), None)
