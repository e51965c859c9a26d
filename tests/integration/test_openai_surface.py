"""The whole surface of the `openai` package that is served: each method, synchronous and not, its answer and a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from starlette.routing import Match, Route

from omnibus.broker.connection import Connection
from omnibus.frontdoor.app import create_app
from omnibus.frontdoor.context import Options
from tests.support.batches import begun, request
from tests.support.front import FixedPipelines, Front, front, nobody
from tests.support.openai_calls import CALLS, LINE, WORDS, Call, Things, everything

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning", "ignore:deprecated:DeprecationWarning"),
]
ABSENT = ("chat.completions.list", "fine_tuning.jobs.list", "moderations.create", "uploads.create", "webhooks.list")
"""Methods whose routes are not here."""
APP = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]
ROUTES = [route for route in APP.routes if isinstance(route, Route)]
PICTURES = "/v1/images/generations"
Ask = Callable[[str, dict[str, Any]], Awaitable[tuple[Any, Any]]]
"""The answer of a method, and the request that it sent."""


@asynccontextmanager
async def serving(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(
        connection, everything(pipeline), Options(api_keys=(pipeline,)), batches=True, videos=True
    ) as made:
        yield made


async def things(door: Front) -> Things:
    """What the calls are about."""
    client, model = door.openai, door.spec.name
    batch = await begun(client, [{}])
    slow = {"model": model, "prompt": WORDS, "sampling_params": {"painter": {"latency": 30.0}}}
    spare_batch = await begun(client, [request("slow", slow, PICTURES)], PICTURES)
    file = await client.files.create(file=("in.jsonl", LINE), purpose="batch")
    spare_file = await client.files.create(file=("in.jsonl", LINE), purpose="user_data")
    videos = [await client.videos.create_and_poll(model=model, prompt=WORDS, poll_interval_ms=50) for _ in range(2)]
    spare = {"file": spare_file.id, "batch": spare_batch.id, "video": videos[1].id}
    return Things(model=model, file=file.id, batch=batch.id, video=videos[0].id, spare=spare)


def method_of(client: AsyncOpenAI | OpenAI, name: str) -> Any:
    found: Any = client
    *path, last = name.split(".")
    for part in path:
        found = getattr(found, part)
    return getattr(found.with_raw_response, last)


def asking(client: AsyncOpenAI) -> Ask:
    async def ask(name: str, given: dict[str, Any]) -> tuple[Any, Any]:
        raw = await method_of(client, name)(**given)
        answer = raw.parse()
        if isinstance(answer, openai.AsyncStream):
            answer = [event async for event in answer]
        return answer, raw.http_request

    return ask


def asking_in_a_thread(client: OpenAI) -> Ask:
    def ask(name: str, given: dict[str, Any]) -> tuple[Any, Any]:
        raw = method_of(client, name)(**given)
        answer = raw.parse()
        return list(answer) if isinstance(answer, openai.Stream) else answer, raw.http_request

    return lambda name, given: asyncio.to_thread(ask, name, given)


@pytest.fixture(params=["async", "sync"])
def asks(request: pytest.FixtureRequest) -> Iterator[Callable[[Front], Ask]]:
    """How a front door is asked, by each of both clients."""
    if request.param == "async":
        yield lambda door: asking(door.openai)
        return
    with OpenAI(api_key="later", base_url="http://later") as client:

        def ask(door: Front) -> Ask:
            client.base_url, client.api_key, client.max_retries = f"{door.server.url}/v1/", door.spec.name, 0  # type: ignore[assignment]
            return asking_in_a_thread(client)

        yield ask


async def test_every_method_is_answered_and_refused(
    connection: Connection, pipeline: str, asks: Callable[[Front], Ask]
) -> None:
    async with serving(connection, pipeline) as door:
        made, ask = await things(door), asks(door)
        faults = [fault for call in CALLS async for fault in faults_of(call, made, ask)]
        for name in ABSENT:
            with pytest.raises(openai.APIStatusError) as absent:
                await ask(name, absent_arguments(name))
            assert absent.value.code in ("not_found", "method_not_allowed")
    assert not faults, "\n".join(faults)


async def faults_of(call: Call, made: Things, ask: Ask) -> AsyncIterator[str]:
    try:
        answer, sent = await ask(call.method, call.given(made))
    except openai.APIStatusError as error:
        yield f"{call.method}: {error}"
        return
    if not call.right(answer):
        yield f"{call.method}: {answer}"
    if (route := route_of(sent)) != call.route:
        yield f"{call.method} asked {route}"
    if not call.wrong:
        return
    try:
        answer, _ = await ask(call.method, {**call.given(made), **call.wrong})
        yield f"{call.method} was not refused: {answer}"
    except openai.APIStatusError as error:
        found = (type(error), error.code, error.param)
        if found != (call.error, call.code, call.param):
            yield f"{call.method} was refused with {found}: {error}"


def route_of(sent: Any) -> str:
    scope = {"type": "http", "method": sent.method, "path": sent.url.path}
    return next(f"{sent.method} {route.path}" for route in ROUTES if route.matches(scope)[0] is Match.FULL)


def absent_arguments(name: str) -> dict[str, Any]:
    """Arguments that the package itself asks for."""
    return {
        "moderations.create": {"input": "x"},
        "uploads.create": {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "batch"},
    }.get(name, {})
