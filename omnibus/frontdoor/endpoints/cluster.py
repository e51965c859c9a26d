"""`GET /v1/cluster` and `/v1/cluster/events`: pipelines with their stages, replicas and queues, now and while they change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from starlette.responses import StreamingResponse
from typing_extensions import TypedDict

from omnibus.client.activity import StageActivity, stages_of
from omnibus.client.cluster_feed import PipelineLook
from omnibus.client.stage_times import StageTimes
from omnibus.errors import BrokerError
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.api_keys import Role
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.error_answers import ErrorAnswer, error_detail
from omnibus.frontdoor.openapi_document import events_of
from omnibus.frontdoor.streaming import STREAM_HEADERS, frame
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import PipelineSpec, StageSpec

router = APIRouter()
_OF_HOSTS = ("host", "pid", "devices", "versions", "reason")
"""Facts of a replica that are not for callers with a user's key."""


class ClusterReplica(TypedDict):
    """A replica. Where it runs, and why it cannot, is null for a user's key."""

    replica: str
    status: str
    reason: str | None
    paused: bool
    slots: int
    in_flight: int
    queue_length: int
    host: str | None
    pid: int | None
    devices: str | None
    versions: dict[str, str] | None
    heartbeat_age: float


class ClusterStage(TypedDict):
    """A stage with its queue. Times are medians of the requests that ended last; rates are over the last seconds."""

    stage_id: int
    name: str
    engine: str
    sources: list[int]
    outputs: list[str]
    """Modalities that it delivers."""
    can_sleep: bool
    pause: str | None
    """paused, asleep, or null."""
    queued: int
    running: int
    oldest_seconds: float | None
    taken_rate: float | None
    """Tasks that replicas took, a second."""
    busy: int
    slots: int
    up: int
    waited_seconds: float | None
    ran_seconds: float | None
    replicas: list[ClusterReplica]


class ClusterEdge(TypedDict):
    source: int
    target: int
    stream: bool
    """Whether the target reads while the source runs."""
    forwarding: str


class ClusterPipeline(TypedDict):
    """A pipeline as `omnibus status --json` has it, with what is only known by looking twice."""

    pipeline: str
    model: str
    """The name that it is served by."""
    modalities: list[str]
    events: int
    stages: list[ClusterStage]
    edges: list[ClusterEdge]


class ClusterAnswer(TypedDict):
    object: Literal["cluster"]
    role: str | None
    """The role of the caller's key; null where no keys are asked for, and everybody may do everything."""
    pipelines: list[ClusterPipeline]


@router.get("/v1/cluster", response_model=ClusterAnswer, openapi_extra=RouteAccess.USER.stated)
async def get_cluster(http: HttpRequest, context: Context) -> Response:
    """Every deployed pipeline: its stages, their replicas, queues, rates and times."""
    answer = await _answer(await context.feed.look(), http, context)
    return await json_response(lambda: answer)


@router.get(
    "/v1/cluster/events",
    response_class=StreamingResponse,
    responses=events_of(cluster=ClusterAnswer.__name__, error=ErrorAnswer.__name__),
    openapi_extra=RouteAccess.USER.stated,
)
async def follow_cluster(http: HttpRequest, context: Context) -> Response:
    """The same as server-sent events, twice a second: `cluster`, or `error` while the broker does not answer."""
    return StreamingResponse(_events(http, context), media_type="text/event-stream", headers=STREAM_HEADERS)


async def _events(http: HttpRequest, context: FrontDoorContext) -> AsyncIterator[bytes]:
    async with aclosing(context.feed.follow()) as looks:
        async for look in looks:
            answer = look if isinstance(look, BrokerError) else await _answer_or_error(look, http, context)
            if isinstance(answer, BrokerError):
                yield frame(ErrorAnswer(error=error_detail(answer)), event="error")
            else:
                yield frame(answer, event="cluster")


async def _answer_or_error(
    looks: list[PipelineLook], http: HttpRequest, context: FrontDoorContext
) -> ClusterAnswer | BrokerError:
    try:
        return await _answer(looks, http, context)
    except BrokerError as error:  # the outage began behind the look
        return error


async def _answer(looks: list[PipelineLook], http: HttpRequest, context: FrontDoorContext) -> ClusterAnswer:
    models = {served.spec.name: served.model for served in await context.models.pipelines()}
    role = http.state.role.value if http.state.tenant is not None else None
    pipelines = [
        _pipeline(look, models[look.status.spec.name], shows_hosts=role != Role.USER)
        for look in looks
        if look.status.spec.name in models
    ]
    return ClusterAnswer(object="cluster", role=role, pipelines=pipelines)


def _pipeline(look: PipelineLook, model: str, *, shows_hosts: bool) -> ClusterPipeline:
    status, spec = look.status.as_json(), look.status.spec
    activity = {one.stage_id: one for one in stages_of(look.status, look.before)}
    stages = []
    for known in status["stages"]:
        stage = spec.stage(known["stage_id"])
        if not shows_hosts:
            known["replicas"] = [{**one, **dict.fromkeys(_OF_HOSTS)} for one in known["replicas"]]
        stages.append(_stage(stage, known, activity[stage.stage_id], look.times.get(stage.stage_id)))
    return ClusterPipeline(
        pipeline=spec.name, model=model, modalities=list(spec.modalities), events=status["events"], stages=stages,
        edges=_edges(spec),
    )  # fmt: skip


def _stage(stage: StageSpec, known: dict[str, Any], activity: StageActivity, times: StageTimes | None) -> ClusterStage:
    return ClusterStage(
        stage_id=stage.stage_id, name=stage.name, engine=stage.engine, sources=list(stage.input_sources),
        outputs=list(stage.final_types), can_sleep=engine_kind(stage.engine).can_sleep,
        pause=known["pause"], queued=known["queued"], running=known["running"],
        oldest_seconds=activity.oldest_seconds, taken_rate=activity.taken_rate,
        busy=activity.busy, slots=activity.slots, up=activity.up,
        waited_seconds=None if times is None else round(times.waited, 4),
        ran_seconds=None if times is None else round(times.ran, 4),
        replicas=known["replicas"],
    )  # fmt: skip


def _edges(spec: PipelineSpec) -> list[ClusterEdge]:
    edges = [spec.edge(source, stage.stage_id) for stage in spec.stages for source in stage.input_sources]
    return [
        ClusterEdge(source=edge.source, target=edge.target, stream=edge.is_stream, forwarding=edge.forwarding.value)
        for edge in edges
    ]
