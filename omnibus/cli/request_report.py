"""One request in words: at which stage it is, how long each stage took, what it has delivered, and what went wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.markup import escape

from omnibus.cli.answer import attempts_table, describe, describe_attempt
from omnibus.cli.root import CommandSession
from omnibus.cli.tables import clock, duration, make_table
from omnibus.client.request_events import Result
from omnibus.client.request_position import RequestPosition, StagePosition, find_position
from omnibus.errors import UnknownRequest
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import list_deployed
from omnibus.requests.record import unknown
from omnibus.wire.envelope import StageTiming

_NOWHERE = RequestPosition((), ())


class RequestStatuses:
    """The status of one request, again and again until it has ended. Made by `find`."""

    def __init__(self, session: CommandSession, spec: PipelineSpec, request_id: str) -> None:
        self._session, self._spec, self._request_id = session, spec, request_id
        self.ended = False

    @classmethod
    async def find(cls, session: CommandSession, request_id: str) -> Self:
        """The status of a request of the pipeline that was named, or else of any; raises UnknownRequest."""
        spec, _ = await find_request(session, request_id)
        return cls(session, spec, request_id)

    async def read(self) -> tuple[list[dict[str, Any]], RenderableType]:
        """As JSON, and for the screen."""
        result = await self._session.producer.result(self._spec.name, self._request_id)
        self.ended = result.state.terminal
        position = await current_position(self._session, self._spec, result)
        at = [{"stage": self._spec.stage_name(one.stage_id), "replica": one.replica, "queued_at": one.queued}
              for one in position.stages]  # fmt: skip
        return [{**describe(self._spec, result), "at": at}], Group(*_in_words(self._spec, result, position))


async def find_request(session: CommandSession, request_id: str) -> tuple[PipelineSpec, Result]:
    """A request of the pipeline that was named, or else of any; raises UnknownRequest."""
    deployed = [found.spec for found in await list_deployed(session.connection)] if session.wanted is None else []
    for spec in deployed or [await session.spec()]:
        try:
            return spec, await session.producer.result(spec.name, request_id)
        except UnknownRequest:
            continue
    raise unknown(request_id)


async def current_position(session: CommandSession, spec: PipelineSpec, result: Result) -> RequestPosition:
    """Where a request is now; nowhere when it has ended."""
    return _NOWHERE if result.state.terminal else await find_position(session.connection, spec.name, result.rid)


def _in_words(spec: PipelineSpec, result: Result, position: RequestPosition) -> list[RenderableType]:
    timings = {timing.stage_id: timing for timing in (*position.timings, *result.timings)}
    here = {one.stage_id: one for one in position.stages}
    rows = [_row(spec, stage_id, result, timings.get(stage_id), here.get(stage_id)) for stage_id in result.stage_ids]
    lines: list[RenderableType] = [f"request {result.rid} of {spec.name}: {escape(_headline(spec, result, position))}"]
    lines.append(_times(result, timings.values()))
    if rows:  # none where it was refused
        lines += ["", make_table(("stage", "state", "waited", "ran", "replica"), rows)]
    if result.outputs:
        lines.append("")
    lines += [
        escape(f"{output.modality} from {spec.stage_name(output.stage_id)}: {output.summary()}")
        for output in result.outputs
    ]
    if result.attempts:
        lines += ["", attempts_table([describe_attempt(spec, attempt) for attempt in result.attempts])]
    return lines


def _headline(spec: PipelineSpec, result: Result, position: RequestPosition) -> str:
    if result.failure is not None:
        return f"{result.state}: {result.failure.message} ({result.failure.code})"
    if result.state.terminal:
        return str(result.state)
    return ", ".join(_at(spec, one) for one in position.stages) or "open, on its way between two stages"


def _at(spec: PipelineSpec, one: StagePosition) -> str:
    stage = f"stage {one.stage_id} {spec.stage_name(one.stage_id)}"
    return f"running at {stage}, replica {one.replica}" if one.replica is not None else f"waiting for {stage}"


def _times(result: Result, timings: Iterable[StageTiming]) -> str:
    accepted = f"accepted {clock(result.created)}"
    last = max((timing.finished for timing in timings), default=None)
    if not result.state.terminal:
        return f"{accepted}, deadline {clock(result.deadline)}, in {duration(result.deadline - time.time())}"
    if str(result.state) == "done" and last is not None:
        return f"{accepted}, done {clock(last)}, after {duration(last - result.created)}"
    return accepted


def _row(
    spec: PipelineSpec, stage_id: int, result: Result, timing: StageTiming | None, here: StagePosition | None
) -> list[str | None]:
    name = f"{stage_id} {spec.stage_name(stage_id)}"
    if here is not None:
        since = duration(time.time() - here.queued)
        if here.replica is None:
            return [name, "waiting", since, None, None]
        return [name, f"running, queued at {clock(here.queued)}", None, None, here.replica]
    if result.failure is not None and result.failure.stage_id == stage_id:
        attempts = f", after {result.failure.attempts} attempts" if result.failure.attempts > 1 else ""
        return [name, f"{result.state}{attempts}", None, None, result.failure.replica]
    if timing is None:
        return [name, "not run" if result.state.terminal else "not there yet", None, None, None]
    waited, ran = map(duration, timing.seconds)
    return [name, "done", waited, ran, None]
