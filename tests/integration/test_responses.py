"""`/v1/responses`, by the unmodified `openai` package: conversations that are kept, and events that any front door repeats."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from PIL import Image

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerUnavailable
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.endpoints import stored_responses
from omnibus.frontdoor.responses.response_record import response_id
from omnibus.frontdoor.submitting import Prepared
from tests.integration.test_answer_fields import spec_of
from tests.support import answering_stage
from tests.support.batches import answers, begun, ended, request
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
PAINT: Any = [{"type": "image_generation", "output_format": "webp"}]
SLOW = {"writer": {"tokens": 60, "token_rate": 60.0}}
"""A second of text."""
LONG = {"writer": {"tokens": 3000, "token_rate": 30.0}}
"""A text that is not at its end when it is cancelled, however busy the machine is."""


def keys(name: str) -> Options:
    """Of two tenants that have no responses yet: the store is one for all pipelines."""
    return Options(api_keys=(name, f"{name}-other"), ping_interval=0.2)


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, omni_sim(pipeline), keys(pipeline), responses=True) as made:
        yield made


async def finished(door: Front, response_id: str) -> Response:
    async def found() -> Response | None:
        response = await door.openai.responses.retrieve(response_id)
        return response if response.status not in ("queued", "in_progress") else None

    return await eventually(found, 20.0, what=f"{response_id} has ended")


async def events_of(stream: AsyncIterator[ResponseStreamEvent]) -> list[ResponseStreamEvent]:
    return [event async for event in stream]


def numbers(events: list[ResponseStreamEvent]) -> list[int]:
    return [event.sequence_number for event in events]


def words(events: list[ResponseStreamEvent]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_a_conversation_is_kept_gone_on_from_and_deleted(door: Front) -> None:
    responses = door.openai.responses
    first = await responses.create(model=door.spec.name, input="one two", metadata={"of": "tests"}, user="me")
    second = await responses.create(input="three", previous_response_id=first.id)

    assert (first.status, first.output_text, first.object, first.error) == ("completed", "one two", "response", None)
    assert (first.metadata, first.model, first.user) == ({"of": "tests"}, door.spec.name, "me")
    assert first.usage is not None
    assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens > 0
    assert second.output_text == "one two three", "the stage was shown the earlier turn"
    assert await responses.retrieve(first.id) == first
    items = await responses.input_items.list(second.id, order="asc")
    assert [(item.type, item.content[0].text) for item in items.data] == [  # type: ignore[union-attr]
        ("message", "one two"), ("message", "one two"), ("message", "three"),
    ]  # fmt: skip
    pages = [item.id async for item in responses.input_items.list(second.id, limit=2)]
    assert pages == [item.id for item in reversed(items.data)]

    await responses.delete(first.id)
    third = await responses.create(input="four", previous_response_id=second.id)
    assert third.output_text == "one two three four", "what went on from it has its conversation"
    for gone in (responses.retrieve(first.id), responses.delete(first.id), responses.cancel(first.id)):
        with pytest.raises(openai.NotFoundError, match="there is no response"):
            await gone
    with pytest.raises(openai.NotFoundError) as refused:
        await responses.create(input="five", previous_response_id=first.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "response_not_found")


async def test_a_stream_is_what_its_log_repeats(door: Front) -> None:
    async with door.openai.responses.stream(model=door.spec.name, input="red green blue") as stream:
        events = [event async for event in stream]
        whole = await stream.get_final_response()
    assert whole.output_text == "red green blue"
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    assert [event.type for event in events][:3] == [
        "response.created", "response.in_progress", "response.output_item.added"
    ]  # fmt: skip
    repeated = await events_of(await door.openai.responses.retrieve(whole.id, stream=True))
    assert [event.type for event in repeated] == [event.type for event in events]
    assert words(repeated) == "red green blue"
    rest = await events_of(await door.openai.responses.retrieve(whole.id, stream=True, starting_after=4))
    assert rest == repeated[5:]


async def test_the_package_without_async_has_the_same(door: Front) -> None:
    def drive() -> None:
        with OpenAI(base_url=f"{door.server.url}/v1", api_key=door.spec.name, max_retries=0, timeout=20.0) as client:
            whole = client.responses.create(input="hello there", store=False)
            assert whole.output_text == "hello there"
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(whole.id)
            with client.responses.stream(model=door.spec.name, input="hello there") as stream:
                assert stream.get_final_response().output_text == "hello there"
            later = client.responses.create(input="hello there", background=True)
            with client.responses.stream(response_id=later.id) as stream:
                assert stream.get_final_response().output_text == "hello there"
            assert client.responses.retrieve(later.id).status == "completed"
            assert [item.type for item in client.responses.input_items.list(later.id)] == ["message"]
            assert client.responses.cancel(later.id).status == "completed"
            assert client.responses.delete(later.id) is None

    await asyncio.to_thread(drive)


async def test_reasoning_and_calls_are_items_and_their_results_go_on(connection: Connection, pipeline: str) -> None:
    answering_stage.go_on.set()
    async with front(connection, spec_of(pipeline), keys(pipeline)) as door:
        responses = door.openai.responses
        async with responses.stream(model=pipeline, input="calls", top_logprobs=0) as stream:
            streamed = await events_of(stream)
            whole = await stream.get_final_response()
        again = await responses.create(input="calls")
        result: Any = [{"type": "function_call_output", "call_id": answering_stage.CALL_ID, "output": "rain"}]
        with pytest.raises(openai.BadRequestError, match="no stage has a chat template") as refused:
            await responses.create(input=result, previous_response_id=whole.id)
        assert refused.value.param == "previous_response_id"
    reasoning, message, call = whole.output
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.content or ()] == ["".join(answering_stage.REASONING)]
    assert message.type == "message"
    assert message.content[0].text == "".join(answering_stage.TOKENS)  # type: ignore[union-attr]
    assert [one.token for one in message.content[0].logprobs or ()] == answering_stage.TOKENS  # type: ignore[union-attr]
    assert call.type == "function_call"
    assert (call.call_id, call.name, call.arguments) == (
        answering_stage.CALL_ID, "weather", "".join(answering_stage.ARGUMENTS)
    )  # fmt: skip
    kinds = [event.type.split(".")[1] for event in streamed if event.type.endswith(".delta")]
    assert list(dict.fromkeys(kinds)) == ["reasoning_text", "output_text", "function_call_arguments"]
    assert [item.type for item in again.output] == ["reasoning", "message", "function_call"]


async def test_pictures_are_items_streamed_and_whole(door: Front) -> None:
    whole = await door.openai.responses.create(model=door.spec.name, input="a red circle", tools=PAINT)
    message, picture = whole.output
    assert (message.type, picture.type) == ("message", "image_generation_call")
    made = Image.open(io.BytesIO(base64.b64decode(picture.result or "")))  # type: ignore[union-attr]
    assert (made.format, picture.size) == ("WEBP", f"{made.width}x{made.height}")  # type: ignore[union-attr]
    stream = await door.openai.responses.create(
        input="a red circle", tools=PAINT, tool_choice={"type": "image_generation"}, stream=True
    )
    events = await events_of(stream)
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.image_generation_call.in_progress", "response.image_generation_call.generating",
        "response.image_generation_call.completed", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    more = await door.openai.responses.create(input="and a square", previous_response_id=whole.id)
    assert more.output_text == "a red circle and a square"


async def test_a_response_in_the_background_is_queued_followed_and_cancelled(door: Front) -> None:
    responses = door.openai.responses
    later = await responses.create(input="word", background=True, extra_body={"sampling_params": LONG})
    assert (later.status, later.background, later.output) == ("queued", True, [])
    events: list[ResponseStreamEvent] = []
    async for event in await responses.retrieve(later.id, stream=True):
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    running = await responses.retrieve(later.id)
    assert (running.status, running.output_text.split()[0]) == ("in_progress", "word")
    stream = await responses.retrieve(later.id, stream=True, starting_after=events[-1].sequence_number)
    events += [await anext(stream) for _ in range(3)]
    cancelled = await responses.cancel(later.id)
    events += [event async for event in stream]

    assert numbers(events) == list(range(len(events)))
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert cancelled.status == "cancelled"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response == cancelled
    assert cancelled.output_text == words(events) != "", "what was written stays"
    assert (await responses.cancel(later.id)) == cancelled
    whole = await responses.create(input="hello")
    with pytest.raises(openai.BadRequestError, match="in the background"):
        await responses.cancel(whole.id)


async def test_a_response_in_the_background_is_what_its_events_make(door: Front) -> None:
    later = await door.openai.responses.create(input="one two", background=True, stream=True)
    events = await events_of(later)
    assert numbers(events) == list(range(len(events)))
    assert events[-1].type == "response.completed"
    end = await door.openai.responses.retrieve(events[-1].response.id)
    assert (end.status, end.output_text, end) == ("completed", words(events), events[-1].response)


async def test_no_event_is_missing_or_twice_when_the_runner_dies_in_the_middle(
    connection: Connection, pipeline: str
) -> None:
    spec, options = omni_sim(pipeline), keys(pipeline)
    async with AsyncExitStack() as stack, front(connection, spec, options) as first:
        dying = await stack.enter_async_context(AsyncExitStack())
        await dying.enter_async_context(front(connection, spec, options, workers=False, responses=True))
        stream = await first.openai.responses.create(
            model=pipeline, input="word", background=True, stream=True, extra_body={"sampling_params": SLOW}
        )
        events = [await anext(stream) for _ in range(8)]
        await dying.aclose()
        await stack.enter_async_context(front(connection, spec, options, workers=False, responses=True))
        events += [event async for event in stream]
        whole = await first.openai.responses.retrieve(events[0].response.id)  # type: ignore[union-attr]
        repeated = await events_of(await first.openai.responses.retrieve(whole.id, stream=True))
    assert numbers(events) == list(range(len(events)))
    assert (whole.status, whole.output_text) == ("completed", words(events))
    assert len(whole.output_text.split()) == SLOW["writer"]["tokens"]
    assert repeated == events


async def test_a_response_is_made_when_its_request_was_never_submitted(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnibus.frontdoor.job_runner.ADMISSION", 0.2)
    spec, options = omni_sim(pipeline), keys(pipeline)
    async with front(connection, spec, options, responses=True) as door:

        async def dies(_context: object, _http: object, prepared: Prepared) -> object:
            made.append(response_id(prepared.rid))
            raise asyncio.CancelledError

        made = list[str]()

        with monkeypatch.context() as patch:
            patch.setattr("omnibus.frontdoor.job_submission.send", dies)
            with pytest.raises((httpx.HTTPError, AssertionError)):
                (await door.http.post("/v1/responses", json={"input": "left", "background": True})).raise_for_status()
        assert (await finished(door, made[0])).output_text == "left"


async def test_a_response_that_fails_says_why(door: Front) -> None:
    failing = {"sampling_params": {"writer": {"reject_on": {"rid": "."}}}}
    with pytest.raises(openai.BadRequestError):
        await door.openai.responses.create(input="hello", extra_body=failing)
    later = await door.openai.responses.create(input="hello", background=True, extra_body=failing)
    end = await finished(door, later.id)
    assert (end.status, end.error and end.error.code) == ("failed", "invalid_prompt")
    events = await events_of(await door.openai.responses.retrieve(later.id, stream=True))
    assert events[-1].type == "response.failed"
    more = await door.openai.responses.create(input="again", previous_response_id=later.id)
    assert more.status == "completed"


async def test_other_tenants_find_nothing(door: Front) -> None:
    mine = await door.openai.responses.create(input="mine", background=True)
    await finished(door, mine.id)
    theirs = door.openai.with_options(api_key=f"{door.spec.name}-other").responses
    for asked in (
        theirs.retrieve(mine.id), theirs.retrieve(mine.id, stream=True), theirs.cancel(mine.id), theirs.delete(mine.id),
        theirs.input_items.list(mine.id), theirs.create(input="go on", previous_response_id=mine.id),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            await asked
    assert (await door.openai.responses.retrieve(mine.id)).output_text == "mine"


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("POST ", {"input": "x", "background": True, "store": False}, 400, "store"),
    ("POST ", {"input": "x", "resumable": True}, 400, "resumable"),
    ("POST ", {"input": "x", "model": "nobody"}, 404, "model"),
    ("POST ", {"input": ""}, 400, "input"),
    ("POST ", {}, 400, "input"),
    ("POST ", {"input": "x", "previous_response_id": "resp_"}, 404, "previous_response_id"),
    ("POST ", {"input": "x", "tools": [{"type": "function", "name": "f"}]}, 400, "tools"),
    (
        "POST ",
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-x"}]}]}, 404, "file_id",
    ),
    (
        "POST ",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]}]},
        400, "input[0].content[0].image_url",
    ),
    ("GET /resp_x", {}, 404, "response_id"),
    ("GET /{id}", {"starting_after": 3}, 400, "starting_after"),
    ("GET /{id}", {"stream": True, "starting_after": -1}, 400, "starting_after"),
    ("GET /{id}", {"include_obfuscation": True}, 400, "include_obfuscation"),
    ("GET /{id}", {"include[]": "computer_call_output.output.image_url"}, 400, "include[]"),
    ("GET /{id}/input_items", {"after": "msg_x"}, 400, "after"),
    ("GET /{id}/input_items", {"limit": 0}, 400, "limit"),
    ("POST /resp_x/cancel", {}, 404, "response_id"),
    ("DELETE /resp_x", {}, 404, "response_id"),
]  # fmt: skip
"""A call, what is sent with it, and the status and the field of its refusal; all of them on one front door, which is quicker."""


async def test_what_cannot_be_done_is_refused_by_name(door: Front) -> None:
    kept = (await door.openai.responses.create(input="x")).id
    for call, sent, status, param in REFUSED:
        method, _, path = call.partition(" ")
        named = {"params": sent} if method == "GET" else {"json": sent} if method == "POST" else {}
        answer = await door.http.request(method, f"/v1/responses{path.format(id=kept)}", **named)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), (call, sent, answer.text)


async def test_a_repeated_call_is_the_same_response(door: Front) -> None:
    for fields in ({}, {"background": True}):
        headers = {"Idempotency-Key": f"once-{len(fields)}"}
        made = [
            (await door.http.post("/v1/responses", json={"input": "once", **fields}, headers=headers)).json()["id"]
            for _ in range(2)
        ]
        assert made[0] == made[1]
        await finished(door, made[0])
        again = await door.http.post("/v1/responses", json={"input": "once", **fields}, headers=headers)
        assert (again.json()["status"], again.json()["id"]) == ("completed", made[0])
        different = await door.http.post("/v1/responses", json={"input": "other", **fields}, headers=headers)
        assert different.status_code == 409


async def test_nothing_is_stored_when_the_tenant_has_no_room(connection: Connection, pipeline: str) -> None:
    options = Options(api_keys=(pipeline,), files_quota=1)
    async with front(connection, omni_sim(pipeline), options) as door:
        first = await door.openai.responses.create(input="hello")
        with pytest.raises(openai.APIStatusError) as refused:
            await door.openai.responses.create(input="hello")
        assert (refused.value.status_code, refused.value.code) == (413, "quota_exceeded")
        assert refused.value.param == "store"
        assert (await door.openai.responses.create(input="hello", store=False)).output_text == "hello"
        await door.openai.responses.delete(first.id)
        assert (await door.openai.responses.create(input="hello")).output_text == "hello"


async def test_nothing_is_left_when_a_response_could_not_be_queued(
    door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Connection.js_publish

    def without_queue(connection: Connection, subject: str, *args: object, **kwargs: object) -> object:
        if subject.startswith("omni-responses."):
            made.append(subject.partition(".")[2])
            raise BrokerUnavailable("no queue")
        return publish(connection, subject, *args, **kwargs)  # type: ignore[arg-type]

    made = list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "js_publish", without_queue)
        answer = await door.http.post("/v1/responses", json={"input": "nowhere", "background": True})
    assert answer.status_code == 503
    assert (await door.http.get(f"/v1/responses/{made[0]}")).status_code == 404


async def test_a_reader_is_shown_that_its_response_was_deleted(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_responses, "CANCEL_WAIT", 0.1)
    async with front(connection, omni_sim(pipeline), keys(pipeline), workers=False) as door:  # nobody makes it
        later = await door.openai.responses.create(input="hello", background=True)
        stream = await door.openai.responses.retrieve(later.id, stream=True)
        assert [(await anext(stream)).type for _ in range(2)] == ["response.created", "response.queued"]
        assert (await door.openai.responses.cancel(later.id)).status == "cancelled"
        await door.openai.responses.delete(later.id)
        with pytest.raises(openai.APIError, match="there is no response"):
            await anext(stream)


async def test_responses_are_lines_of_batches(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), keys(pipeline), batches=True) as door:
        url = "/v1/responses"
        lines = [request(f"line-{n}", {"model": pipeline, "input": f"say {n}"}, url) for n in range(5)]
        lines.append(request("later", {"model": pipeline, "input": "x", "background": True}, url))
        end = await ended(door.openai, await begun(door.openai, lines, url))
        found = await answers(door.openai, end)
        assert end.usage is not None
        assert end.usage.output_tokens > 0
        for line in found.good:
            made = Response.model_validate(line["response"]["body"])
            assert made.output_text == f"say {line['custom_id'][-1]}"
            assert (await door.openai.responses.retrieve(made.id)).output_text == made.output_text
        assert [line["response"]["body"]["error"]["param"] for line in found.bad] == ["background"]
