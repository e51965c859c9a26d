"""Several requests of one body, as of texts that are embedded: submitted together, and all of them or none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from fastapi import Request as HttpRequest

from omnibus.client.request_events import Output, Result
from omnibus.errors import EngineError, InvalidRequest, OmnibusError
from omnibus.frontdoor.bodies import AskingBody
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.submitting import DEFERRED, Accepted, abandon, is_passing, result_of, submit
from omnibus.ledger.overload import most_at_once
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

AT_A_TIME = 16
"""Requests that are submitted, or cancelled, at the same time."""
B = TypeVar("B", bound=AskingBody)
T = TypeVar("T")


async def results_of_all(
    context: FrontDoorContext,
    http: HttpRequest,
    body: B,
    requests: Sequence[Callable[[B, PipelineSpec], Request]],
    *,
    modality: str,
    field: str,
) -> tuple[Accepted, list[Result]]:
    """The first request as it was accepted, and the results in the order of the requests.

    Raises the error of the first that is refused or fails, and InvalidRequest, naming the body's `field`, for more than may be
    open at once. The others are cancelled then, unless they have an idempotency key or are sent again.
    """
    most = most_at_once((await context.models.find(body.model, modality=modality)).spec)
    if len(requests) > most:
        message = f"has {len(requests)} entries, each a request, and the pipeline has {most} open at once: send fewer"
        raise InvalidRequest(f"{field} {message}", param=field)
    accepted = await _submitted(context, http, body, requests, modality)
    try:
        results = await asyncio.gather(*(result_of(context, http, one) for one in accepted))
    except OmnibusError as error:
        await _leave(context, http, accepted, error)
        raise
    return accepted[0], results


def output_of(result: Result, modality: str) -> Output:
    """The output of this modality; raises EngineError where there is none."""
    found = next((output for output in result.outputs if output.modality == modality and output.items), None)
    if found is None:
        raise EngineError(f"the pipeline delivered no {modality}")
    return found


async def _submitted(
    context: FrontDoorContext,
    http: HttpRequest,
    body: B,
    requests: Sequence[Callable[[B, PipelineSpec], Request]],
    modality: str,
) -> list[Accepted]:
    """The requests, in their order; raises the error of the first that is refused."""
    accepted, refusals = dict[int, Accepted](), list[OmnibusError]()

    async def one(number: int) -> None:
        if refusals:
            return
        try:
            accepted[number] = await submit(context, http, body, requests[number], modality=modality, part=number)
        except OmnibusError as error:
            refusals.append(error)

    await _all(range(len(requests)), one)
    if refusals:
        await _leave(context, http, accepted.values(), refusals[0])
        raise refusals[0]
    return [accepted[number] for number in range(len(requests))]


async def _leave(
    context: FrontDoorContext, http: HttpRequest, accepted: Iterable[Accepted], error: OmnibusError
) -> None:
    """Cancel what was accepted of a body that fails, unless it is sent again and finds it under the same ids."""
    if not (DEFERRED in http.scope["state"] and is_passing(error)):
        await _all(accepted, partial(abandon, context))


async def _all(given: Iterable[T], act: Callable[[T], Awaitable[None]]) -> None:
    """Do the same with each, some at a time."""
    free = asyncio.Semaphore(AT_A_TIME)

    async def one(value: T) -> None:
        async with free:
            await act(value)

    await asyncio.gather(*map(one, given))
