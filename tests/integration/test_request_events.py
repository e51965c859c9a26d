"""`GET /v1/requests/{id}?stream=true`: the events of any request, from any of them on, at any front door."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.frontdoor.api_keys import read_setting
from omnibus.frontdoor.context import Options
from omnibus.wire import subjects
from omnibus.wire.request import Request, encode_request
from tests.integration.test_answer_fields import spec_of
from tests.integration.test_open_input_deaths import orchestrated, process
from tests.support import answering_stage, listening_stages
from tests.support.event_reading import Event, all_of, check_whole, events_of, of_type, some_of, texts
from tests.support.front import STEPS, Front, front, omni_sim
from tests.support.sessions import pipeline_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
WORDS = " ".join(f"word{number}" for number in range(40))
KEYS = Options(api_keys=("ours", "theirs", "admin:chief"), ping_interval=0.2)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    answering_stage.attempts.clear()
    answering_stage.go_on.clear()
    listening_stages.reset()
    yield
    answering_stage.go_on.set()
    listening_stages.reset()


@pytest_asyncio.fixture
async def doors(connection: Connection, pipeline: str) -> AsyncIterator[tuple[Front, Front]]:
    """Two front doors of one pipeline, which writes 50 words a second."""
    spec = omni_sim(pipeline, token_rate=50.0)
    async with front(connection, spec) as one, front(connection, spec, workers=False) as other:
        yield one, other


async def plain(door: Front, rid: str) -> dict[str, Any]:
    return dict((await door.http.get(f"/v1/requests/{rid}")).json())


async def hopping(doors: tuple[Front, Front], rid: str, each: int = 1) -> list[Event]:
    """The events of a request, read by a caller that is at another front door after every one of them."""
    events = list[Event]()
    while not events or events[-1]["type"] != "request.ended":
        after = events[-1]["cursor"] if events else None
        events += await some_of(doors[len(events) % 2].http, rid, each, after)
    return events


async def test_caller_has_each_event_once_when_it_changes_the_front_door_after_every_one(
    doors: tuple[Front, Front],
) -> None:
    submission = await doors[0].producer.submit(doors[0].spec, Request(prompt=WORDS, stream=True))
    events = await hopping(doors, submission.rid)
    whole = await plain(doors[1], submission.rid)
    check_whole(events, whole)
    assert len(of_type(events, "text.delta")) > 3, "it was read while it was written"
    assert texts(events) == {("writer", ""): WORDS}
    assert {output["modality"] for output in whole["outputs"]} == {"text", "image", "audio"}


async def test_stream_goes_on_behind_each_event_of_a_stream_of_another_front_door(doors: tuple[Front, Front]) -> None:
    answer = await doors[0].http.post(
        "/v1/chat/completions",
        json={"model": doors[0].spec.name, "messages": [{"role": "user", "content": WORDS}], "modalities": ["text", "image"]},
    )  # fmt: skip
    rid = answer.headers["x-request-id"]
    events = await all_of(doors[0].http, rid)
    check_whole(events, await plain(doors[0], rid))
    for count, event in enumerate(events, 1):
        rest = await all_of(doors[1].http, rid, event["cursor"])
        assert [*events[:count], *rest] == events, "an ended request has the same events everywhere"


async def test_progress_and_text_come_while_they_are_made_of_a_request_without_a_stream(
    doors: tuple[Front, Front], quick_reads: None
) -> None:
    """Nobody listens to it, until this caller asks."""
    slow = {"painter": {"latency": 3.0}}
    request = Request(prompt=WORDS, modalities=("text", "image"), stream=False, sampling_params=slow)
    submission = await doors[0].producer.submit(doors[0].spec, request)
    events = await all_of(doors[1].http, submission.rid)
    check_whole(events, await plain(doors[0], submission.rid))
    assert len(of_type(events, "text.delta")) > 3
    progress = of_type(events, "progress")
    assert {(event["stage"], event["total"]) for event in progress} <= {("painter", STEPS)}
    assert progress


async def test_raw_request_whose_producer_does_not_listen_is_followed_by_its_id(
    doors: tuple[Front, Front], connection: Connection
) -> None:
    name = doors[0].spec.name
    raw = encode_request(Request(prompt=WORDS, modalities=("text",)))
    await connection.js_publish(subjects.request(name, "raw-1"), raw)

    async def admitted() -> bool:
        return (await doors[1].http.get("/v1/requests/raw-1")).status_code == 200

    await eventually(admitted)
    events = await hopping(doors, "raw-1", each=2)
    check_whole(events, await plain(doors[1], "raw-1"))
    assert len(of_type(events, "text.delta")) > 1


async def test_reasoning_and_calls_come_beside_the_text_when_an_attempt_failed_on_the_way(
    connection: Connection, pipeline: str
) -> None:
    async with (
        front(connection, spec_of(pipeline)) as one,
        front(connection, spec_of(pipeline), workers=False) as other,
    ):
        submission = await one.producer.submit(one.spec, Request(prompt="calls fail", stream=True))
        events = list[Event]()
        async for event in events_of(other.http, submission.rid):
            events.append(event)
            if texts(events).get(("answerer", "")) == "".join(answering_stage.TOKENS):
                break  # the attempt is in its middle, and its caller loses its connection
        answering_stage.go_on.set()
        events += await all_of(one.http, submission.rid, events[-1]["cursor"])
        whole = await plain(other, submission.rid)
    check_whole(events, whole)
    made = texts(events)
    assert made["answerer", "reasoning"] == "".join(answering_stage.REASONING)
    assert made["answerer", "tool_calls.0.arguments"] == "".join(answering_stage.ARGUMENTS)
    assert [attempt["code"] for attempt in whole["attempts"]] == ["engine_error"]


async def test_segments_end_in_their_places_in_an_open_input(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with front(connection, spec) as one, front(connection, spec, workers=False) as other:
        submission = await one.producer.submit(spec, Request(prompt="hello", resumable=True, stream=True))
        for text, end in (("one two", False), ("three", True)):
            path = f"/v1/requests/{submission.rid}/input"
            assert (await other.http.post(path, json={"prompt": text, "end": end})).status_code == 200
        events = await hopping((one, other), submission.rid)
        check_whole(events, await plain(other, submission.rid))
    told = [event.get("number", event.get("delta")) for event in events if "number" in event or "delta" in event]
    by_segment = "".join(f"|{one}|" if isinstance(one, int) else one for one in told)
    assert by_segment == "HELLO |0|ONE TWO |1|THREE |2|"


async def test_replica_is_killed_in_mid_stream_and_the_events_go_on(connection: Connection, pipeline: str) -> None:
    spec = msgspec.structs.replace(omni_sim(pipeline, token_rate=50.0), heartbeat_timeout=2.0)
    spec = msgspec.structs.replace(spec, stages=spec.stages[:1])
    described = msgspec.json.encode(spec).decode()
    await ensure_layout(connection, layout_of(spec))
    async with (
        orchestrated(connection, spec),
        front(connection, spec, workers=False) as one,
        front(connection, spec, workers=False) as other,
    ):
        async with process("replica_process", connection.url, "w1", described):
            submission = await one.producer.submit(spec, Request(prompt=WORDS, stream=True))
            events = await some_of(other.http, submission.rid, 12)
            assert 0 < len(texts(events)["writer", ""]) < len(WORDS)
        async with process("replica_process", connection.url, "w2", described):
            events += await all_of(one.http, submission.rid, events[-1]["cursor"])
            check_whole(events, await plain(other, submission.rid))


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_end_says_how_a_request_ended_that_is_not_done(connection: Connection, pipeline: str, how: str) -> None:
    async with front(connection, omni_sim(pipeline), Options(ping_interval=0.1), workers=False) as door, orchestrated(
        connection, door.spec
    ):  # fmt: skip
        deadline = 1.0 if how == "expired" else None
        submission = await door.producer.submit(door.spec, Request(prompt="nobody works", deadline=deadline))
        events = await some_of(door.http, submission.rid, 1)
        if how == "cancelled":
            await door.http.delete(f"/v1/requests/{submission.rid}")
        events += await all_of(door.http, submission.rid, events[-1]["cursor"])
        check_whole(events, await plain(door, submission.rid))
    assert [event.get("status") or event["request"]["status"] for event in events] == ["open", how]


async def test_event_stream_goes_on_behind_what_a_client_says_that_connects_again(doors: tuple[Front, Front]) -> None:
    """A browser's EventSource asks for the same address again, with the id of the last event in a header."""
    submission = await doors[0].producer.submit(doors[0].spec, Request(prompt="one two", modalities=("text",)))
    events = await all_of(doors[0].http, submission.rid)
    first, last = events[0]["cursor"], events[-1]["cursor"]

    async def again(after: str, header: str) -> list[str]:
        query, headers = {"stream": "true", "starting_after": after}, {"Last-Event-ID": header}
        answer = await doors[1].http.get(f"/v1/requests/{submission.rid}", params=query, headers=headers)
        return [line for line in answer.text.splitlines() if line.startswith("data")]

    assert await again(first, last) == ["data: [DONE]"]
    *_, end, done = rest = await again(last, first)
    assert ("request.ended" in end, done) == (True, "data: [DONE]")
    assert not [line for line in rest if "request.status" in line]
    plain_answer = await doors[1].http.get(f"/v1/requests/{submission.rid}", headers={"Last-Event-ID": "whatever"})
    assert plain_answer.json()["status"] == "done"


@pytest.mark.parametrize(
    ("rid", "query", "headers", "refusal"),
    [
        ("unheard-of", {"stream": "true"}, {}, (404, "request_not_found", "request_id")),
        ("bad.id", {"stream": "true"}, {}, (400, "invalid_name", "request_id")),
        ("", {"stream": "true", "starting_after": "17"}, {}, (400, "invalid_request", "starting_after")),
        ("", {"stream": "true"}, {"Last-Event-ID": "e-17"}, (400, "invalid_request", "Last-Event-ID")),
        ("", {"starting_after": "17"}, {}, (400, "invalid_request", "starting_after")),
        ("", {"stream": "perhaps"}, {}, (400, "invalid_request", "stream")),
        ("", {"strean": "true"}, {}, (400, "invalid_request", "strean")),
    ],
)
async def test_refusals_name_what_is_wrong(
    doors: tuple[Front, Front], rid: str, query: dict[str, str], headers: dict[str, str], refusal: tuple[object, ...]
) -> None:
    known = (await doors[0].producer.submit(doors[0].spec, Request(prompt="x", modalities=("text",)))).rid
    answer = await doors[1].http.get(f"/v1/requests/{rid or known}", params=query, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == refusal


async def test_cursor_of_another_request_is_refused(doors: tuple[Front, Front]) -> None:
    rids = [
        (await doors[0].producer.submit(doors[0].spec, Request(prompt="x", modalities=("text",)))).rid
        for _ in range(2)
    ]  # fmt: skip
    (first,) = await some_of(doors[0].http, rids[0], 1)
    answer = await doors[1].http.get(
        f"/v1/requests/{rids[1]}", params={"stream": "true", "starting_after": first["cursor"]}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "starting_after")


async def test_events_are_those_of_the_keys_owner_and_of_an_admin(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), KEYS) as door:
        request = Request(prompt="mine", modalities=("text",), tenant=read_setting("ours").tenant)
        rid = (await door.producer.submit(door.spec, request)).rid
        async with httpx.AsyncClient(base_url=door.server.url) as caller:
            for key, status in (("theirs", 404), ("ours", 200), ("chief", 200)):
                caller.headers["Authorization"] = f"Bearer {key}"
                answer = await caller.get(f"/v1/requests/{rid}", params={"stream": "true"})
                assert answer.status_code == status, key
                assert ("mine" in answer.text) is (status == 200)
