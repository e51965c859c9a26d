"""The ledger's record of one request."""

from __future__ import annotations

import msgspec

from omnibus.errors import UnknownRequest
from omnibus.requests.state import RequestState, transition
from omnibus.wire.envelope import FinalOutput, StageTiming, Ticket
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.failure import Failure
from omnibus.wire.payload import Payloads

ENDED_TTL = 15 * 60
"""Seconds that the record of an ended request stays readable, at least."""
BEYOND_DEADLINE = 1.0
"""Seconds after a request's deadline in which its end may still come; those who wait for it wait no longer."""
OPEN_TTL = 7 * 24 * 3600
"""Seconds beyond its deadline that the record of an open request is kept. Its timer has an orchestrator end it long before;
this is for records that nothing ends, such as those of a pipeline that nobody serves any more."""
DEAD_TTL = 7 * 24 * 3600
"""Seconds that a dead letter is kept."""
MOST_ATTEMPTS = 24
"""Failed attempts that a record remembers; the oldest give way."""
_OBJECT_PREFIXES = ("chatcmpl", "cmpl")
"""Prefixes of a request's id in OpenAI's objects."""


def unknown(rid: str) -> UnknownRequest:
    """The error of an id without a record."""
    prefix, dash, bare = rid.partition("-")
    hint = f"; without {prefix}- it is a request's id: {bare}" if dash and prefix in _OBJECT_PREFIXES else ""
    return UnknownRequest(
        f"no request {rid!r} is known; results are kept for {ENDED_TTL // 60} minutes{hint}", param="request_id"
    )


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request as the ledger knows it. Written by compare-and-set only."""

    v: int = 1
    ticket: Ticket
    """Everything that the request's admission has decided."""
    state: RequestState = RequestState.OPEN
    arrived: dict[int, Payloads] = {}
    """Outputs that joins still wait for, by the stage that made them."""
    outputs: dict[int, FinalOutput] = {}
    """Final outputs so far, by stage."""
    timings: tuple[StageTiming, ...] = ()
    failure: Failure | None = None
    attempts: tuple[Attempt, ...] = ()
    """Those that failed, of all its runs, in the order of their reports."""
    dead: bool = False
    """Its attempts were used up once, and its dead letter is kept."""

    @property
    def rid(self) -> str:
        return self.ticket.rid

    @property
    def nonce(self) -> str:
        return self.ticket.nonce

    @property
    def tenant(self) -> str:
        return self.ticket.tenant

    def lifetime(self, now: float) -> float:
        """Seconds that the record is kept from `now` on (since the epoch).

        Invariant: an id that workers and orchestrators drop is not free. They remember it until its deadline; a new
        request under it would be accepted before and then dropped.
        """
        left = max(self.ticket.deadline - now, 0.0)
        if not self.state.terminal:
            return left + OPEN_TTL
        return ENDED_TTL if self.state is RequestState.DONE else max(ENDED_TTL, left)

    def ended(self, state: RequestState, failure: Failure | None = None) -> Record:
        """The record in a terminal state, without what only a running request needs, or one that may run again."""
        ticket = self.ticket if state is RequestState.FAILED else self.ticket.without_request()
        return msgspec.structs.replace(
            self, ticket=ticket, state=transition(self.state, state), failure=failure, arrived={}
        )

    def stands(self, nonce: str, run: int) -> bool:
        """Whether the request of a nonce has ended in this run, and nobody has opened it again since."""
        return self.state.terminal and (self.nonce, self.ticket.run) == (nonce, run)

    def noting(self, attempt: Attempt | None) -> Record:
        """The record with one more failed attempt; the same when it is known."""
        known = {(noted.task_seq, noted.delivery) for noted in self.attempts}
        if attempt is None or (attempt.task_seq, attempt.delivery) in known:
            return self
        return msgspec.structs.replace(self, attempts=(*self.attempts, attempt)[-MOST_ATTEMPTS:])

    def next_run(self) -> Record:
        """The record opened for another run. Outputs that were already delivered stay: they are answered once."""
        state = self.state if self.state is RequestState.OPEN else transition(self.state, RequestState.OPEN)
        ticket = msgspec.structs.replace(self.ticket, run=self.ticket.run + 1)
        return msgspec.structs.replace(self, ticket=ticket, state=state, failure=None, arrived={})


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request whose attempts were used up, kept for an operator."""

    v: int = 1
    record: Record
    """As it failed last."""
    died: float
    """Seconds since the epoch."""
