"""The messages of the work queue: tasks for workers, events for orchestrators.

Both carry the request's ticket, so that their receiver can forward the request without reading anything else.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from omnibus.pipeline.route import Route
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.failure import Failure
from omnibus.wire.payload import Payload, Payloads

VERSION = 2
"""The version of these messages: a receiver refuses later ones. Always on the wire, so that it is the sender's."""
_SENDERS = msgspec.field(default_factory=lambda: VERSION)


class Ticket(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of every envelope that stays the same along one run of a request."""

    rid: str
    pipeline: str
    run: int = 1
    route: Route
    created: float
    """Admission, or the operator's retry that the run belongs to; seconds since the epoch."""
    deadline: float
    """Seconds since the epoch. This, like every time in an envelope, is by the server's clock: see `broker.clock`."""
    request: Payload
    """The producer's request, see `wire.request`. Behind the first stages only a small one is inline, see `has_request`."""
    tenant: str = "default"
    nonce: str = ""
    """Marks the call of `admit` that made the record: a create whose answer was lost is recognised by it."""
    digest: str = ""
    """Digest of the producer's request: the same id with another digest is a conflict."""
    revision: int = 0
    """The record's revision as its admission wrote it; 0 in every later run, and where nobody knows it."""
    front: str | None = None
    """Reply token: part of the `out` subject that deltas and notices go to; None: the producer does not listen."""
    lane: str = "interactive"
    priority: int = 0
    max_attempts: int = 5
    affinity: str | None = None
    """Tasks with the same key go to the same replica of a directed stage."""
    trace: dict[str, str] = {}
    resumable: bool = False
    """Its input is open: the first stages read the segments that follow the request."""

    @property
    def has_request(self) -> bool:
        """Whether the request is to be had by this ticket; else its record has it, until its end."""
        return self.request.data is not None or bool(self.request.locations)

    def without_request(self, *, above: int = 0) -> Ticket:
        """The ticket without the bytes of a request that has more of them than that; a reference stays."""
        if self.request.data is None or self.request.nbytes <= above:
            return self
        return replace(self, request=replace(self.request, data=None))


class TokenUsage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one stage."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the prompt that the engine had already: from other requests' beginnings, or from a prefill stage."""
    reasoning_tokens: int = 0
    """Those of the completion that are its reasoning."""


class StageTiming(msgspec.Struct, frozen=True, array_like=True):
    """Times of one stage of a request, seconds since the epoch by the server's clock."""

    stage_id: int
    queued: float
    started: float
    finished: float
    bytes_in: int = 0
    bytes_out: int = 0
    stored: int = 0
    """Payloads that the stage put into the object store for the next ones."""
    hosted: int = 0
    """The same in shared memory."""
    flowed: int = 0
    """Chunks of the stage's flow, its end counted; 0: it has none."""
    usage: TokenUsage = TokenUsage()

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds in the queue and in the engine; the clocks of two hosts may differ by more than a task waited."""
        return max(0.0, self.started - self.queued), max(0.0, self.finished - self.started)


class FinalOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A delivered output of a request: text, or files."""

    stage_id: int
    modality: str
    items: tuple[Payload, ...]
    """One text, or n files."""
    finish_reason: str = "stop"
    usage: TokenUsage = TokenUsage()
    segments: tuple[int, ...] = ()
    """Characters before the end of each segment, in a text that answers an open input."""
    fields: Payload | None = None
    """Parts of the answer beside its text, a JSON object of texts by name: see `wire.fields`."""
    also: tuple[FinalOutput, ...] = ()
    """Further outputs of the stage, of other modalities."""


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="task"):
    """Work for one stage."""

    v: int = _SENDERS
    ticket: Ticket
    stage_id: int
    published: float
    """When the task was made, seconds since the epoch: the start of its time in the queue."""
    inputs: dict[int, Payloads] = {}
    """Outputs of the stages that this one needs, by stage id."""
    flow: int | None = None
    """The stage that this one reads while it runs, instead of `inputs`."""
    timings: tuple[StageTiming, ...] = ()


class StageResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="result"):
    """A stage has finished. Its subject's kind is `final` when `final` is set, else `result`."""

    v: int = _SENDERS
    ticket: Ticket
    stage_id: int
    replica: str
    outputs: Payloads = {}
    """For the next stages; empty when there are none that an orchestrator forwards to."""
    final: FinalOutput | None = None
    timings: tuple[StageTiming, ...] = ()


class StageFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="failed"):
    """A stage cannot finish its task, now or ever."""

    v: int = _SENDERS
    ticket: Ticket
    stage_id: int
    failure: Failure
    dead: bool = False
    """The attempts are used up, and the request becomes a dead letter."""
    attempt: Attempt | None = None
    """The last attempt, when it used them up."""


class AttemptFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="attempt"):
    """An attempt came to nothing, and its task is tried again: for the history of the request."""

    v: int = _SENDERS
    rid: str
    attempt: Attempt


class DeadlinePassed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="deadline"):
    """The request's timer fired."""

    v: int = _SENDERS
    rid: str
    deadline: float


Event = StageResult | StageFailed | AttemptFailed | DeadlinePassed


def event_kind(event: Event) -> str:
    """Return the kind that an event's subject names."""
    match event:
        case StageResult(final=None):
            return "result"
        case StageResult():
            return "final"
        case StageFailed():
            return "failed"
        case AttemptFailed():
            return "attempt"
        case DeadlinePassed():
            return "deadline"


def event_rid(event: Event) -> str:
    """Return the id of the request that an event belongs to."""
    return event.rid if isinstance(event, AttemptFailed | DeadlinePassed) else event.ticket.rid
