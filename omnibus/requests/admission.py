"""Whether a request may enter a pipeline, and what is done when it does: pure.

The shell performs `admission_effects` in order; the request is accepted when its last task is acknowledged. When the
record cannot be created because the id is taken, it reads the record and asks `check_same`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import asdict

from omnibus.errors import DeadlineExceeded, EmptyPrompt, InvalidRequest, RequestConflict, RequestTooLarge
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import Route
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import OVERFLOW_LANE, PipelineSpec, StageSpec
from omnibus.requests.advance import end_again, entry_tasks
from omnibus.requests.effects import CreateRecord, Effect, SaveRecord, ScheduleDeadline
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import Ticket
from omnibus.wire.failure import Failure
from omnibus.wire.payload import INLINE_LIMIT, Payload
from omnibus.wire.request import (
    REQUEST_MEDIA_TYPE,
    Message,
    Request,
    TextPart,
    decode_request,
    encode_request,
    media_parts,
)
from omnibus.wire.subjects import check_name

MIN_DEADLINE = 0.001
"""Shortest deadline that a request may ask for, seconds."""
NUMBER_BYTES = 4
"""Bytes that a number counts for in `max_prompt_bytes`: about what a token's text has."""
UNCOUNTED = frozenset({"v", "stream", "deadline", "lane", "priority", "tenant", "trace", "fingerprint"})
"""Fields of a request that have a bound of their own."""
MAX_TRACE_BYTES = 8 * 1024
"""Largest trace context that a request may bring, encoded."""
MAX_TENANT = 256
"""Characters of a tenant's name."""
T = TypeVar("T")
_canonical = msgspec.msgpack.Encoder(order="deterministic")


def validate(spec: PipelineSpec, request: Request) -> Route:
    """The route of a request; raises a RequestError that names the field when the pipeline cannot serve it."""
    _check_prompt(spec, request)
    if request.modalities is not None and not request.modalities:
        raise InvalidRequest("modalities is empty; leave it out for every output", param="modalities")
    if request.lane not in spec.lanes:
        raise InvalidRequest(
            f"pipeline {spec.name!r} has no lane {request.lane!r}; it has {', '.join(spec.lanes)}", param="lane"
        )
    if len(request.tenant) > MAX_TENANT:  # it is part of every record
        raise RequestTooLarge(f"tenant may have {MAX_TENANT} characters", param="tenant")
    if len(msgspec.msgpack.encode(request.trace)) > MAX_TRACE_BYTES:  # it travels in every envelope
        raise RequestTooLarge(f"trace may have {MAX_TRACE_BYTES} bytes", param="trace")
    if request.deadline is not None and not request.deadline >= MIN_DEADLINE:
        raise InvalidRequest(f"deadline must be at least {MIN_DEADLINE} s", param="deadline")
    names = {name for stage in spec.stages for name in (stage.name, str(stage.stage_id))}
    for name in request.sampling_params:
        if name not in names:
            raise InvalidRequest(f"no stage {name!r} in pipeline {spec.name!r}", param=f"sampling_params.{name}")
    route = plan_route(spec, request.modalities)
    _check_effects(spec, request, route)
    return route


def digest(request: Request) -> str:
    """Tells two requests apart that came under one id; what does not change the answer is left out."""
    same = msgspec.structs.replace(request, trace={}, priority=0, affinity=None)
    return hashlib.sha256(_canonical.encode(same)).hexdigest()


def new_record(  # noqa: PLR0913 what its admitter knows of a request, each by its name
    spec: PipelineSpec,
    request: Request,
    *,
    rid: str,
    payload: Payload,
    nonce: str,
    now: float,
    front: str | None,
    lane: str | None = None,
    route: Route | None = None,
) -> Record:
    """The record of a valid request. `payload` holds the encoded request, inline or by reference.

    `lane` is the one that its tasks take, by default what it asks for. `route` is what `validate` has returned; by default
    it is asked here, and this raises as it does.
    """
    ticket = Ticket(
        rid=rid,
        pipeline=spec.name,
        route=route or validate(spec, request),
        created=now,
        deadline=now + timeout_of(spec, request),
        request=payload,
        front=front,
        lane=lane or request.lane,
        priority=request.priority,
        max_attempts=spec.max_attempts,
        affinity=request.affinity,
        trace=request.trace,
    )
    return Record(ticket=ticket, tenant=request.tenant, nonce=nonce, digest=digest(request))


def timeout_of(spec: PipelineSpec, request: Request) -> float:
    """Seconds that a request may take: what it asks for, never more than its pipeline's."""
    return spec.deadline if request.deadline is None else min(request.deadline, spec.deadline)


def lane_of(spec: PipelineSpec, request: Request, others: int) -> str:
    """The lane of a request whose tenant has `others` open that asked for the same: the overflow beyond its share.

    Invariant: all that are open count, not those in the lane alone. Else each that comes anew would pass the tenant's own
    older ones in the overflow, which would wait for as long as more come.
    """
    share = spec.tenant_share
    is_beyond = share is not None and others >= share
    return OVERFLOW_LANE if is_beyond and request.lane == "interactive" else request.lane


def unadmitted_record(
    pipeline: str,
    rid: str,
    state: RequestState,
    failure: Failure,
    *,
    data: bytes,
    nonce: str,
    now: float,
    front: str | None,
) -> Record:
    """The record of a raw request that ends as it begins, so that its producer can read why.

    A producer that sends the same `data` again finds it, where they are a request.
    """
    empty = Payload.inline(b"", REQUEST_MEDIA_TYPE)
    ticket = Ticket(rid=rid, pipeline=pipeline, route=Route(()), created=now, deadline=now, request=empty, front=front)
    same = Record(ticket=ticket, nonce=nonce, digest="", state=state, failure=failure)
    try:
        request = decode_request(data)
        encode_request(request)  # JSON may hold what has no digest
    except InvalidRequest:
        return same
    return msgspec.structs.replace(same, digest=digest(request), tenant=request.tenant)


def bury(pipeline: str, rid: str, data: bytes, failure: Failure, *, nonce: str, now: float) -> tuple[Effect, ...]:
    """Effects that replace a record which nobody can read by one that has failed of that.

    What it was is kept as the input of its dead letter.
    """
    record = unadmitted_record(pipeline, rid, RequestState.FAILED, failure, data=b"", nonce=nonce, now=now, front=None)
    payload = Payload.inline(data[:INLINE_LIMIT], "application/octet-stream")
    ticket = msgspec.structs.replace(record.ticket, request=payload)
    dead = msgspec.structs.replace(record, ticket=ticket, dead=True)
    return (SaveRecord(dead), *end_again(dead))


def lapse(pipeline: str, rid: str, *, nonce: str, now: float) -> tuple[Effect, ...]:
    """Effects that end a request as expired whose record was open for so long that it is gone."""
    failure = Failure.of(DeadlineExceeded())
    record = unadmitted_record(pipeline, rid, RequestState.EXPIRED, failure, data=b"", nonce=nonce, now=now, front=None)
    return (CreateRecord(record), *end_again(record))


def admission_effects(record: Record) -> tuple[Effect, ...]:
    """Deadline first, so that nothing is ever open without one; then the record; then the tasks."""
    ticket = record.ticket
    return (
        ScheduleDeadline(ticket.rid, ticket.deadline),
        CreateRecord(record),
        *entry_tasks(ticket, ticket.created),
    )


def check_same(existing: Record, mine: Record) -> None:
    """Raises RequestConflict when an id is taken by another request; one with the same nonce is of the very same call."""
    if existing.nonce != mine.nonce and (existing.digest, existing.tenant) != (mine.digest, mine.tenant):
        raise RequestConflict(f"request id {mine.rid!r} was used for a different request")


def attach_effects(existing: Record) -> tuple[Effect, ...]:
    """Decide what a client that attaches to a request does for it.

    An open request: its admitter may have died before all tasks were queued, so they are published again, under the message
    ids of the current run; dedupe drops what is there. When nothing is queued after that, `redrive`.
    """
    ticket = existing.ticket
    tasks = () if existing.state.terminal else tuple(entry_tasks(ticket, ticket.created))
    return (*timer_effects(existing), *tasks)


def timer_effects(existing: Record) -> tuple[Effect, ...]:
    """Undo what an attempt to admit did to the timer of a request that was there before.

    It has replaced the timer by its own: the record's is put back, or removed when the request has ended. With the timer goes
    all that is queued, among it perhaps the event that would have had the rest of the end done: so that is done, too.
    """
    if existing.state.terminal:
        return end_again(existing)
    return (ScheduleDeadline(existing.rid, existing.ticket.deadline),)


def _check_prompt(spec: PipelineSpec, request: Request) -> None:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give exactly one of prompt and messages", param="prompt")
    if request.prompt is not None and not request.prompt:
        raise EmptyPrompt(param="prompt")
    if isinstance(request.prompt, str) and not request.prompt.strip():
        raise EmptyPrompt(param="prompt")
    if request.messages is not None and not any(_says_something(message) for message in request.messages):
        raise EmptyPrompt("The messages are empty.", param="messages")
    counted = {name: value for name, value in asdict(request).items() if name not in UNCOUNTED}
    if (size := sum(map(_bytes_of, counted.values()))) > spec.max_prompt_bytes:
        largest = max(counted, key=lambda name: _bytes_of(counted[name]))
        raise RequestTooLarge(
            f"texts, ids and parameters have {size} bytes; {spec.name!r} accepts {spec.max_prompt_bytes}", param=largest
        )


def _bytes_of(value: object) -> int:
    """Bytes of all texts and numbers inside a value, files left out."""
    match value:
        case str():
            return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
        case bytes() | None:
            return 0
        case dict():
            return sum(_bytes_of(name) + _bytes_of(inner) for name, inner in value.items())
        case (int(), *_) if isinstance(value, tuple):  # token ids: nothing else of a request is such a tuple
            return NUMBER_BYTES * len(value)
        case list() | tuple():
            return sum(map(_bytes_of, value))
        case msgspec.Struct():
            return sum(map(_bytes_of, asdict(value).values()))
        case _:
            return NUMBER_BYTES


def _check_effects(spec: PipelineSpec, request: Request, route: Route) -> None:
    """Refuse what none of the stages that would run does anything with."""
    stages = [spec.stage(stage_id) for stage_id in route.stage_ids]
    if request.affinity is not None:
        check_name(request.affinity, "affinity")
        if not any(LoadBalancingPolicy(stage.lb_policy).directed for stage in stages):
            raise InvalidRequest(
                f"affinity has no effect in pipeline {spec.name!r}: under the policy `broker` the first free replica "
                "takes a task; give a stage another lb_policy",
                param="affinity",
            )
    if request.priority and not (_waits(request) or any(_schedules(stage) for stage in stages)):
        raise InvalidRequest(
            f"priority has no effect in pipeline {spec.name!r}: it needs a vLLM stage with `scheduling_policy: priority`, or "
            "for one above 0 the lane `batch`",
            param="priority",
        )
    engines = ", ".join(dict.fromkeys(stage.engine for stage in stages))
    if request.mm_processor_kwargs and not any(engine_kind(stage.engine).has_media_processor for stage in stages):
        raise InvalidRequest(f"no stage has a media processor: the engines are {engines}", param="mm_processor_kwargs")
    adapters = sorted({name for stage in stages for name in stage.engine_args.get("lora_modules", ())})
    if request.lora is not None and request.lora not in adapters:
        known = ", ".join(adapters) or "none"
        raise InvalidRequest(f"no stage has a LoRA adapter {request.lora!r}; there are: {known}", param="lora")
    _check_turns(request.messages or (), stages, engines)


def _waits(request: Request) -> bool:
    """Whether its lane does what its priority asks for."""
    return request.priority > 0 and request.lane == "batch"


def _schedules(stage: StageSpec) -> bool:
    return stage.engine_args.get("scheduling_policy") == "priority"


def _check_turns(messages: Sequence[Message], stages: Sequence[StageSpec], engines: str) -> None:
    """Refuse what a chat holds beside its texts where no stage could show it to a model."""
    for where, _ in media_parts(messages):
        kind = where.rpartition(".")[-1]
        if not any(kind in _may(stage, "takes_media", {kind}) for stage in stages):
            raise InvalidRequest(f"no stage takes {kind}: the engines are {engines}", param=where)
    for index, message in enumerate(messages):
        beside = next((name for name in ("tool_calls", "tool_call_id", "name") if getattr(message, name)), None)
        if beside is not None and not any(_may(stage, "has_chat_template", True) for stage in stages):
            raise InvalidRequest(
                f"no stage has a chat template that shows {beside} to a model: the engines are {engines}",
                param=f"messages[{index}].{beside}",
            )


def _may(stage: StageSpec, ability: str, everything: T) -> T:
    """An ability of a stage's engine; a stage with an input processor has `everything`, which may read all of a request."""
    found: T = everything if stage.input_processor is not None else getattr(engine_kind(stage.engine), ability)
    return found


def _says_something(message: Message) -> bool:
    if isinstance(message.content, str):
        return bool(message.content.strip() or message.tool_calls)
    return any(not isinstance(part, TextPart) or part.text.strip() for part in message.content)
