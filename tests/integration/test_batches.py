"""`/v1/batches`, by the unmodified `openai` package: every line is answered once, as its endpoint would answer it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import pytest_asyncio
from msgspec.structs import replace

from omnibus.broker.connection import STREAM_FULL, Connection
from omnibus.broker.delivery_loop import DeliveryLoop
from omnibus.errors import BrokerRefused
from omnibus.files.line_log import LineLog
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.endpoints.batches import MOST_OPEN
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support.batches import answers, begun, chat, ended, left_of_batches, request, requests_of
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@asynccontextmanager
async def serving(
    connection: Connection, spec: PipelineSpec, *, workers: bool = True, batches: bool = True
) -> AsyncIterator[Front]:
    """A front door whose keys, and so whose tenants, have no batches yet."""
    options = Options(api_keys=(spec.name, f"{spec.name}-other"))
    async with front(connection, spec, options, workers=workers, batches=batches) as made:
        yield made


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with serving(connection, replace(omni_sim(pipeline), lanes=("interactive", "batch"))) as made:
        yield made


async def test_every_line_is_answered_once_when_some_are_refused(front_door: Front, connection: Connection) -> None:
    model, client = front_door.spec.name, front_door.openai
    lines = [chat(model, f"line-{number}", f"say {number}") for number in range(200)]
    lines[7]["body"]["temperature"] = -1
    lines[8]["body"]["model"] = "nobody"
    lines[9]["body"]["messages"] = []
    lines[10]["body"]["sampling_params"] = {"writer": {"fail_rate": 1.0}}
    batch = await begun(client, lines, metadata={"of": "tests"})
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/chat/completions")
    end = await ended(client, batch)
    assert (end.status, end.metadata, end.errors) == ("completed", {"of": "tests"}, None)
    assert end.request_counts is not None
    assert end.request_counts.to_dict() == {"total": 200, "completed": 196, "failed": 4}
    assert None not in (end.in_progress_at, end.finalizing_at, end.completed_at)
    assert end.expires_at == batch.expires_at == batch.created_at + 86_400
    found = await answers(client, end)
    assert sorted(found.by_id) == sorted(line["custom_id"] for line in lines)
    for line in found.good:
        body = line["response"]["body"]
        number = line["custom_id"].removeprefix("line-")
        assert body["choices"][0]["message"]["content"] == f"say {number}"
        assert line["response"]["status_code"] == 200
        assert body["id"] == f"chatcmpl-{line['response']['request_id']}"
        assert line["error"] is None
    statuses = {line["custom_id"]: line["response"]["status_code"] for line in found.bad}
    assert statuses == {"line-7": 400, "line-8": 404, "line-9": 400, "line-10": 500}
    refused = found.by_id["line-7"]["response"]["body"]["error"]
    assert (refused["param"], refused["code"]) == ("temperature", "invalid_request")
    assert len(await requests_of(connection, model)) == 197, "a line is a request"
    assert end.usage is not None
    tokens = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in found.good)
    assert end.usage.output_tokens == tokens > 0
    files = {one.id: one async for one in client.files.list(purpose="batch_output")}
    assert set(files) == {end.output_file_id, end.error_file_id}
    await eventually(lambda: _nothing_left(connection), 20.0, what="log and message are gone")


async def test_a_line_gets_what_its_endpoint_answers(front_door: Front) -> None:
    model, client = front_door.spec.name, front_door.openai
    body = {"model": model, "prompt": "one two three", "seed": 4}
    batch = await begun(client, [request("a", body, "/v1/completions")], "/v1/completions")
    (line,) = (await answers(client, await ended(client, batch))).good
    asked = (await client.completions.create(**body)).to_dict()  # type: ignore[call-overload]
    told = line["response"]["body"]
    own = ("id", "created")
    assert {name: told[name] for name in told if name not in own} == {
        name: asked[name] for name in asked if name not in own
    }
    picture = {"model": model, "prompt": "a red circle", "n": 1, "output_format": "png"}
    batch = await begun(client, [request("b", picture, "/v1/images/generations")], "/v1/images/generations")
    (line,) = (await answers(client, await ended(client, batch))).good
    assert line["response"]["body"]["data"][0]["b64_json"].startswith("iVBOR")


async def test_embeddings_are_lines_when_each_has_several_inputs(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(
        stage_id=0, name="embedder", engine="python", model="tests.support.embedding_stage:embed", slots=4,
        final_output=True, final_output_type="embedding",
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))
    async with serving(connection, spec) as door:
        lines = [
            request(str(number), {"model": pipeline, "input": ["a" * number, "b"]}, "/v1/embeddings")
            for number in range(1, 9)
        ]
        end = await ended(door.openai, await begun(door.openai, lines, "/v1/embeddings"))
        found = (await answers(door.openai, end)).by_id
    vectors = {key: [one["embedding"] for one in line["response"]["body"]["data"]] for key, line in found.items()}
    assert vectors == {str(number): [[float(number), 0.0, 0.0], [0.0, 1.0, 0.0]] for number in range(1, 9)}


async def test_embeddings_of_a_line_are_sent_again_when_some_are_refused(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(
        stage_id=0, name="embedder", engine="python", model="tests.support.embedding_stage:embed", slots=2,
        final_output=True, final_output_type="embedding",
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, deadline=60.0, max_open_requests=4, stages=(stage,))
    async with serving(connection, spec) as door:
        lines = [
            request(str(number), {"model": pipeline, "input": ["a", "b", "c"]}, "/v1/embeddings") for number in range(6)
        ]
        end = await ended(door.openai, await begun(door.openai, lines, "/v1/embeddings"))
        found = await answers(door.openai, end)
        refused = connection.metrics.refused.labels(pipeline, "overloaded")._value.get()
    assert refused > 0
    assert (end.status, len(found.good), found.bad) == ("completed", 6, [])


async def test_a_batch_fails_and_runs_nothing_when_a_line_is_none(front_door: Front, connection: Connection) -> None:
    model, client = front_door.spec.name, front_door.openai
    good, wrong = chat(model, "a", "x"), chat(model, "a", "y")
    wrong["url"] = "/v1/completions"
    end = await ended(client, await begun(client, [good, wrong]))
    assert (end.status, end.output_file_id, end.error_file_id) == ("failed", None, None)
    assert end.failed_at
    assert end.errors is not None
    assert end.errors.data is not None
    assert [(error.code, error.line, error.param) for error in end.errors.data] == [
        ("duplicate_custom_id", 2, "custom_id"),
        ("invalid_url", 2, "url"),
    ]
    assert await requests_of(connection, model) == []
    await eventually(lambda: _nothing_left(connection), 20.0, what="log and message are gone")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/audio/speech"}, "endpoint"),
        ({"endpoint": "/v1/images/edits"}, "endpoint"),
        ({"completion_window": "tomorrow"}, "completion_window"),
        ({"completion_window": "8d"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": "file-" + 32 * "0"}, "input_file_id"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
        ({"priority": 3}, "priority"),
    ],
)  # fmt: skip
async def test_a_field_is_named_when_a_batch_cannot_be_made(
    front_door: Front, change: dict[str, Any], param: str
) -> None:
    client = front_door.openai
    file = await client.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **change}
    answer = await front_door.http.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await client.batches.list()).data == []


async def test_a_file_is_refused_when_it_is_for_something_else(front_door: Front) -> None:
    file = await front_door.openai.files.create(file=("in.jsonl", b"{}\n"), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await front_door.openai.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )


async def test_batches_are_listed_to_their_owner_alone(front_door: Front) -> None:
    model, client = front_door.spec.name, front_door.openai
    made = []
    for number in range(5):
        made.append((await begun(client, [chat(model, str(number), "x")])).id)
        await asyncio.sleep(0.002)  # ids are in the order of milliseconds
    assert [one.id async for one in client.batches.list(limit=2)] == made[::-1]
    other = client.with_options(api_key=f"{model}-other")
    assert (await other.batches.list()).data == []
    for asking in (other.batches.retrieve(made[0]), other.batches.cancel(made[0]), client.batches.retrieve("batch_0")):
        with pytest.raises(openai.NotFoundError, match="no batch"):
            await asking
    for one in made:
        assert (await ended(client, await client.batches.retrieve(one))).status == "completed"
    with pytest.raises(openai.ConflictError, match="nothing to cancel"):
        await client.batches.cancel(made[0])


async def test_what_was_answered_stays_when_a_batch_is_cancelled(connection: Connection, pipeline: str) -> None:
    async with serving(connection, omni_sim(pipeline, latency=0.1)) as door:
        client = door.openai
        batch = await begun(client, [chat(pipeline, str(number), "x") for number in range(300)])

        async def has_begun() -> bool:
            counts = (await client.batches.retrieve(batch.id)).request_counts
            return counts is not None and counts.completed > 5

        await eventually(has_begun, 30.0, what="some lines are answered")
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        end = await ended(client, batch, 10.0)
        found = await answers(client, end)
        ids = await requests_of(connection, pipeline)
        results = [await door.producer.result(pipeline, rid) for rid in ids]
    assert end.status == "cancelled"
    assert end.cancelled_at
    assert end.request_counts is not None
    assert (end.request_counts.completed, end.request_counts.failed) == (len(found.good), len(found.bad))
    assert len(found.by_id) == 300
    assert 5 < len(found.good) < 300
    assert {line["error"]["code"] for line in found.bad} == {"batch_cancelled"}
    states = [result.state.value for result in results]
    assert set(states) <= {"done", "cancelled"}, "no request of the batch runs on"
    assert len(states) < 300


async def test_lines_expire_when_the_window_is_over(connection: Connection, pipeline: str) -> None:
    async with serving(connection, omni_sim(pipeline, latency=0.3)) as door:
        batch = await begun(door.openai, [chat(pipeline, str(number), "x") for number in range(1500)], window="10s")
        end = await ended(door.openai, batch, 40.0)
        found = await answers(door.openai, end)
    assert (end.status, end.completion_window) == ("expired", "10s")
    assert end.expired_at
    assert len(found.by_id) == 1500
    assert found.good
    assert {line["error"]["code"] for line in found.bad} == {"batch_expired"}
    assert {line["response"] for line in found.bad} == {None}


async def test_another_runner_goes_on_when_one_stops(connection: Connection, pipeline: str) -> None:
    spec = omni_sim(pipeline, latency=0.1)
    async with serving(connection, spec, batches=False) as door:
        client = door.openai
        batch = await begun(client, [chat(pipeline, str(number), f"say {number}") for number in range(500)])
        stops = 0
        for share in (20, 120, 220):
            async with serving(connection, spec, workers=False):

                async def has_come(share: int = share) -> bool:
                    counts = (await client.batches.retrieve(batch.id)).request_counts
                    return counts is not None and counts.completed >= share

                await eventually(has_come, 30.0, what=f"{share} lines")
            stops += 1
            assert (await client.batches.retrieve(batch.id)).status == "in_progress"
        async with serving(connection, spec, workers=False):
            end = await ended(client, batch)
            await eventually(lambda: _nothing_left(connection), 20.0, what="log and message are gone")
        found = await answers(client, end)
    assert (end.status, stops, len(found.good), len(found.bad)) == ("completed", 3, 500, 0)
    assert len(found.by_id) == 500
    assert len(await requests_of(connection, pipeline)) == 500, "a line became two requests"


async def test_a_front_door_goes_on_to_run_batches_when_its_loop_has_failed(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, faults = DeliveryLoop.run, iter([RuntimeError("a fault of its own")])

    async def faulty(loop: DeliveryLoop) -> None:
        fault = next(faults, None) if loop._where == "batch" else None
        if fault is not None:
            raise fault
        await run(loop)

    monkeypatch.setattr(DeliveryLoop, "run", faulty)
    async with serving(connection, omni_sim(pipeline)) as door:
        end = await ended(door.openai, await begun(door.openai, [chat(pipeline, "a", "x")]))
    assert end.status == "completed"
    assert next(faults, None) is None


async def test_interactive_requests_are_accepted_when_a_batch_fills_the_pipeline(
    connection: Connection, pipeline: str
) -> None:
    spec = replace(omni_sim(pipeline, latency=0.1), lanes=("interactive", "batch"), max_open_requests=60)
    async with serving(connection, spec) as door:
        client = door.openai
        batch = await begun(client, [chat(pipeline, str(number), "x") for number in range(150)])
        asked = 0
        while (await client.batches.retrieve(batch.id)).status in ("validating", "in_progress"):
            made = await client.chat.completions.create(
                model=pipeline, messages=[{"role": "user", "content": "me first"}]
            )
            assert made.choices[0].message.content == "me first"
            asked += 1
        end = await ended(client, batch)
    assert asked > 3
    assert end.request_counts is not None
    assert (end.status, end.request_counts.completed) == ("completed", 150)


@pytest.mark.parametrize(
    ("fault", "times"), [(BrokerRefused("full", err_code=STREAM_FULL), 2), (RuntimeError("a fault"), 99)]
)
async def test_answers_are_kept_when_a_batch_cannot_go_on(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, fault: Exception, times: int
) -> None:
    append, calls = LineLog.append, itertools.count()
    status, least = ("failed", 1) if times == 99 else ("completed", 20)

    async def failing(log: LineLog, lines: bytes) -> None:
        if 5 <= next(calls) < 5 + times:
            raise fault
        await append(log, lines)

    monkeypatch.setattr(LineLog, "append", failing)
    async with serving(connection, omni_sim(pipeline)) as door:
        end = await ended(door.openai, await begun(door.openai, [chat(pipeline, str(one), "x") for one in range(20)]))
        found = await answers(door.openai, end)
        await eventually(lambda: _nothing_left(connection), 20.0, what="log and message are gone")
    assert (end.status, len(found.bad)) == (status, 0)
    assert len(found.by_id) >= least  # each of the first five may have stored lines of others with its own


async def _nothing_left(connection: Connection) -> bool:
    return await left_of_batches(connection) == 0


async def test_a_batch_is_refused_when_its_tenant_has_many_open(connection: Connection, pipeline: str) -> None:
    async with serving(connection, omni_sim(pipeline), workers=False, batches=False) as door:
        client = door.openai
        made = [await begun(client, [chat(pipeline, "a", "x")], window="1h") for _ in range(MOST_OPEN)]
        with pytest.raises(openai.RateLimitError, match="open"):
            await begun(client, [chat(pipeline, "a", "x")])
        await begun(client.with_options(api_key=f"{pipeline}-other"), [chat(pipeline, "a", "x")], window="1s")
        for one in made:
            await client.batches.cancel(one.id)
    async with serving(connection, omni_sim(pipeline)) as door:
        for one in made:
            assert (await ended(door.openai, one)).status == "cancelled"
        await begun(door.openai, [chat(pipeline, "a", "x")], window="1s")


async def test_a_batch_is_refused_when_its_input_expires_before_it(front_door: Front) -> None:
    client = front_door.openai
    file = await client.files.create(
        file=("in.jsonl", b"{}\n"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError, match="expires before"):
        await client.batches.create(**body)  # type: ignore[arg-type]
    body["completion_window"] = "30m"
    assert (await client.batches.create(**body)).status == "validating"  # type: ignore[arg-type]


async def test_a_batch_fails_when_its_input_is_removed(connection: Connection, pipeline: str) -> None:
    async with serving(connection, omni_sim(pipeline, latency=0.2)) as door:
        client = door.openai
        text = "x" * 60_000  # the input is more than what is read ahead
        batch = await begun(client, [chat(pipeline, str(number), text) for number in range(160)])

        async def has_answers() -> bool:
            counts = (await client.batches.retrieve(batch.id)).request_counts
            return counts is not None and counts.completed > 0

        await eventually(has_answers, 20.0, what="it has answers")
        await client.files.delete(batch.input_file_id)
        end = await ended(client, batch)
        found = await answers(client, end)
    assert end.status == "failed"
    assert end.errors is not None
    assert end.errors.data is not None
    assert [(error.code, error.param) for error in end.errors.data] == [("file_not_found", "input_file_id")]
    assert 0 < len(found.good) < 160
