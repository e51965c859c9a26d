"""The dead letters of one pipeline, for an operator: read them, run them again under their own ids, or drop them."""

from __future__ import annotations

from dataclasses import dataclass

from omnibus.client.channel import Channel
from omnibus.client.producer import Producer
from omnibus.errors import RequestConflict, RevisionConflict, UnknownRequest
from omnibus.ledger.dead_letters import DeadLetters
from omnibus.ledger.records import StoredRecord
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.admission import timer_effects
from omnibus.requests.operator_retry import Renewal, check_retry, resume, retry
from omnibus.requests.record import DeadLetter, Record
from omnibus.requests.request_checks import validate
from omnibus.requests.state import RequestState
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.request import REQUEST_MEDIA_TYPE, decode_request


@dataclass(frozen=True, slots=True)
class DeadLetterFacts:
    """A dead letter as an operator reads it. Times are seconds since the epoch, rounded to milliseconds."""

    request_id: str
    state: RequestState | None
    """How its request stands now; None when its record is gone, or another's."""
    died: float
    created: float
    """When its request was accepted."""
    tenant: str
    run: int
    stage: str | None
    """The name of the stage that it failed in."""
    replica: str | None
    code: str | None
    message: str | None
    attempts: int
    """Those that were used up at that stage."""
    history: tuple[Attempt, ...]
    """Attempts that failed, of all stages and runs, as far as they were reported."""


class DeadLetterAdmin:
    """Made by `open`. Every method raises BrokerUnavailable."""

    def __init__(self, channel: Channel, spec: PipelineSpec) -> None:
        self._channel, self._spec = channel, spec
        self._performer = channel.performer
        self._dead_letters: DeadLetters = channel.performer.dead_letters

    @classmethod
    async def open(cls, producer: Producer, spec: PipelineSpec) -> DeadLetterAdmin:
        """The office of a deployed pipeline, through which its requests run again as it is now."""
        channel = await producer.channel(spec.name)
        await channel.direct(spec)
        return cls(channel, spec)

    async def dead_letters(self) -> list[DeadLetter]:
        """All of them, the oldest first; the answer grows with their number."""
        return await self._dead_letters.all()

    async def latest(self, limit: int) -> list[DeadLetter]:
        """The `limit` that died last, the last one first."""
        return await self._dead_letters.latest(limit)

    async def dead_letter(self, rid: str) -> DeadLetter:
        """One of them; raises UnknownRequest."""
        dead_letter = await self._dead_letters.read(rid)
        if dead_letter is None:
            raise UnknownRequest(f"no dead letter {rid!r} in pipeline {self._spec.name!r}")
        return dead_letter

    async def describe(self, dead_letter: DeadLetter) -> DeadLetterFacts:
        """The facts of one; how its request stands is looked up."""
        record, failure = dead_letter.record, dead_letter.record.failure
        stage_id = failure.stage_id if failure is not None else None
        return DeadLetterFacts(
            request_id=record.rid, state=await self._state(dead_letter), died=round(dead_letter.died, 3),
            created=round(record.ticket.created, 3), tenant=record.tenant, run=record.ticket.run,
            stage=self._spec.stage_name(stage_id) if stage_id is not None else None,
            replica=failure.replica if failure is not None else None,
            code=failure.code if failure is not None else None,
            message=failure.message if failure is not None else None,
            attempts=failure.attempts if failure is not None else 0, history=record.attempts,
        )  # fmt: skip

    async def retry(self, rid: str) -> int:
        """Run a request again under its own id, with as much time as it had; returns the number of the run.

        The dead letter stays until the request has ended well. Raises UnknownRequest; RequestConflict when the request is not
        failed (any more) or its id is another's by now; another RequestError when the pipeline cannot serve it as it is deployed
        now; PayloadLost when its input is gone.
        """
        dead_letter = await self.dead_letter(rid)
        renewal = await self._renewal(dead_letter)

        async def run_again(entry: StoredRecord | None) -> int:
            record, revision = (entry.record, entry.revision) if entry is not None else (None, 0)
            is_stranded = record is not None and await self._is_stranded(dead_letter, record)
            effects = resume(record) if record is not None and is_stranded else retry(dead_letter, record, renewal)
            try:
                await self._performer.perform(effects, revision)
            except RevisionConflict:
                await self._put_timer_back(rid)
                raise
            return (record or dead_letter.record).ticket.run + 1

        return await self._performer.ledger.transact(rid, run_again, latest=True)

    async def drop(self, rid: str) -> None:
        """Remove a dead letter and the input that is kept for it, for good.

        Raises UnknownRequest; RequestConflict while its request runs again.
        """
        dead_letter = await self.dead_letter(rid)
        if await self._state(dead_letter) is RequestState.OPEN:
            raise RequestConflict(f"request {rid!r} runs again; cancel it first")
        await self._dead_letters.forget(dead_letter.record)

    async def _renewal(self, dead_letter: DeadLetter) -> Renewal:
        record = await self._record(dead_letter.record.rid)
        if record is not None and not await self._is_stranded(dead_letter, record):
            check_retry(dead_letter, record)
        data = await self._dead_letters.input(dead_letter)
        route = validate(self._spec, decode_request(data))
        payload = await self._channel.store.put(data, REQUEST_MEDIA_TYPE, rid=dead_letter.record.rid)
        return Renewal(payload, route, self._spec.max_attempts, self._performer.clock.now())

    async def _is_stranded(self, dead_letter: DeadLetter, record: Record) -> bool:
        """Whether an earlier retry left it open with nothing queued."""
        is_open = record.nonce == dead_letter.record.nonce and record.state is RequestState.OPEN
        return is_open and not await self._performer.queue.anything_queued(record.rid)

    async def _put_timer_back(self, rid: str) -> None:
        """Somebody was first: theirs is the timer that counts."""
        record = await self._record(rid)
        if record is not None:
            await self._performer.perform(timer_effects(record))

    async def _state(self, dead_letter: DeadLetter) -> RequestState | None:
        """How its request stands now; None when its record has expired, or is another request's."""
        record = await self._record(dead_letter.record.rid)
        return record.state if record is not None and record.nonce == dead_letter.record.nonce else None

    async def _record(self, rid: str) -> Record | None:
        entry = await self._performer.ledger.read_latest(rid)
        return entry.record if entry is not None else None
