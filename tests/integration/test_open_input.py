"""Requests whose input stays open: segments that follow, from anywhere and whatever dies, each of which counts once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, suppress
from typing import Any

import pytest

from omnibus.broker.connection import Connection
from omnibus.client import channel
from omnibus.client.dead_letter_admin import DeadLetterAdmin
from omnibus.client.producer import Producer
from omnibus.client.request_events import ClientEvent, Ended, MediaPiece, SegmentFinished, TextPiece
from omnibus.errors import (
    EmptyPrompt,
    InputClosed,
    InvalidRequest,
    OmnibusError,
    RequestConflict,
    RequestTooLarge,
    UnknownRequest,
)
from omnibus.flows import segments
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire import subjects
from omnibus.wire.request import Message, Request, Segment
from tests.support import listening_stages
from tests.support.flow import serving, sim
from tests.support.sessions import END, LONG, Heard, nothing_stays, pipeline_of, said, session
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    listening_stages.reset()
    yield
    listening_stages.reset()


@pytest.mark.parametrize("function", ["echo", "echo_plainly"])
async def test_each_segment_is_answered_before_the_next_one_is_sent(
    connection: Connection, pipeline: str, function: str
) -> None:
    spec = pipeline_of(pipeline, function)
    async with session(connection, spec) as (producer, submission):
        heard = Heard(submission)
        await heard.until("HELLO ")
        assert await producer.send_segment(spec, submission.rid, said("how are")) == 1
        await heard.until("HELLO ", "HOW ARE ")
        assert await producer.send_segment(spec, submission.rid, said("you", end=True)) == 2
        await heard.task
        result = await producer.wait(spec.name, submission.rid)
        assert (result.state, result.outputs[0].text) == (RequestState.DONE, "HELLO HOW ARE YOU ")
        assert heard.segments == ["HELLO ", "HOW ARE ", "YOU ", ""]
        assert result.outputs[0].segments == (6, 14, 18)
        await nothing_stays(connection, spec)


async def test_film_is_steered_while_it_is_made(connection: Connection, pipeline: str) -> None:
    spec, shades = pipeline_of(pipeline, "film", {"video": "video", "fps": "json"}), list[int]()
    async with session(connection, spec, "10") as (producer, submission), aclosing(submission.events()) as events:
        async for event in events:
            if isinstance(event, MediaPiece) and (shade := int(event.values["video"][-1, 0, 0, 0])) not in shades:
                shades.append(shade)  # and what was seen decides about what follows
                segment = END if len(shades) == 3 else said(str(shade + 40))
                await producer.send_segment(spec, submission.rid, segment)
        result = await producer.wait(spec.name, submission.rid)
    assert shades == [10, 50, 90]
    assert result.state is RequestState.DONE


async def test_follower_that_gave_up_waiting_goes_on_and_misses_nothing(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission), aclosing(submission.events()) as events:

        async def until_silent() -> list[ClientEvent]:
            heard = list[ClientEvent]()
            with suppress(TimeoutError):
                while not any(isinstance(event, Ended) for event in heard):
                    heard.append(await asyncio.wait_for(anext(events), 0.3 if heard else LONG))
            return heard

        assert await until_silent() == [TextPiece(0, "HELLO "), SegmentFinished(0, 0)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.01)
        await producer.send_segment(spec, submission.rid, said("you"))
        assert await until_silent() == [TextPiece(0, "YOU "), SegmentFinished(0, 1)]
        await producer.send_segment(spec, submission.rid, END)
        *_, last = await until_silent()
        assert isinstance(last, Ended)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


@pytest.mark.parametrize("words", [("how are", "you"), ("how are", "fail once", "you")])
async def test_second_stage_knows_where_each_answer_of_the_first_one_ends(
    connection: Connection, pipeline: str, words: tuple[str, ...]
) -> None:
    say = StageSpec(
        stage_id=1, name="say", engine="python", model="tests.support.listening_stages:say_answers",
        input_sources=(0,), engine_args={"outputs": {"text": "text"}}, final_output=True, final_output_type="text",
    )  # fmt: skip
    spec = pipeline_of(pipeline, stages=(say,), edges=(EdgeSpec(source=0, target=1, async_chunk=True),))
    async with session(connection, spec) as (producer, submission):
        heard, answers = Heard(submission), ["<HELLO >"]
        await heard.until(*answers)
        for word in words:
            await producer.send_segment(spec, submission.rid, said(word))
            await heard.until(*(answers := [*answers, f"<{word.upper()} >"]))
        await producer.send_segment(spec, submission.rid, END)
        await heard.task
        assert heard.segments == [*answers, ""]
        assert (await producer.wait(spec.name, submission.rid)).outputs[0].text == "".join(answers)


async def test_input_ends_without_a_last_segment_when_that_is_asked_for(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission):
        assert await producer.send_segment(spec, submission.rid, END) == 1
        assert (await submission.result()).outputs[0].text == "HELLO "


async def test_follower_that_comes_late_has_the_ends_of_segments(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission):
        early = Heard(submission)
        await early.until("HELLO ")
        async with Producer(connection) as other:
            running = Heard(await other.attach(spec.name, submission.rid))
            await running.until("HELLO ")
            await producer.send_segment(spec, submission.rid, said("you", end=True))
            await asyncio.gather(early.task, running.task)
            after = Heard(await other.attach(spec.name, submission.rid))
            await after.task
    assert early.segments == running.segments == after.segments == ["HELLO ", "YOU ", ""]


async def test_answer_comes_when_its_messages_were_lost_and_the_stage_waits_for_the_next_segment(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "READ_EVERY", 0.5)
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission), Producer(connection) as other:
        heard, witness = Heard(submission), Heard(await other.attach(spec.name, submission.rid))
        await asyncio.gather(heard.until("HELLO "), witness.until("HELLO "))
        deaf = await producer.channel(spec.name)
        await deaf._subscriptions.pop().unsubscribe()
        await producer.send_segment(spec, submission.rid, said("how are"))
        await witness.until("HELLO ", "HOW ARE ")
        assert heard.segments == ["HELLO ", ""]
        subject = subjects.out_all(spec.name, producer.front)
        deaf._subscriptions.append(await connection.subscribe(subject, deaf.on_message))
        await heard.until("HELLO ", "HOW ARE ")
        await producer.send_segment(spec, submission.rid, END)
        await asyncio.gather(heard.task, witness.task)
    assert heard.segments == ["HELLO ", "HOW ARE ", ""]


async def test_question_about_lost_text_may_find_nobody(connection: Connection, pipeline: str) -> None:
    crashes = connection.metrics.errors.labels("subscription")
    async with session(connection, pipeline_of(pipeline)) as (producer, submission):
        await producer.send_segment(pipeline_of(pipeline), submission.rid, END)
        await submission.result()
    async with Producer(connection) as alone:
        asking, before = await alone.channel(pipeline), crashes._value.get()
        await asking.ask_sent_text(submission.rid, 0, 0)
        await connection.flush()
        assert crashes._value.get() == before


async def test_segment_counts_once_when_it_is_sent_again(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission), Producer(connection) as other:
        for number, text in ((1, "a"), (2, "b")):
            for sender in (producer, other, producer):
                assert await sender.send_segment(spec, submission.rid, said(text), number=number) == number
        assert await other.send_segment(spec, submission.rid, said("a"), number=1) == 1
        for wrong in (said("other"), said("a", end=True), END):
            with pytest.raises(RequestConflict, match="number 1"):
                await other.send_segment(spec, submission.rid, wrong, number=1)
        with pytest.raises(InvalidRequest, match="segment 3 comes before"):
            await other.send_segment(spec, submission.rid, said("c"), number=4)
        for number in (0, -1):
            with pytest.raises(InvalidRequest, match="from 1 on"):
                await other.send_segment(spec, submission.rid, said("c"), number=number)
        assert await producer.send_segment(spec, submission.rid, END, number=3) == 3
        assert (await submission.result()).outputs[0].text == "HELLO A B "


async def test_senders_do_not_lose_a_segment_when_they_send_at_the_same_time(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission), Producer(connection) as other:
        sending = [
            sender.send_segment(spec, submission.rid, said(f"w{number}"))
            for number in range(8)
            for sender in (producer, other)
        ]
        assert sorted(await asyncio.gather(*sending)) == list(range(1, 17))
        await producer.send_segment(spec, submission.rid, END)
        words = (await submission.result()).outputs[0].text.split()
        assert sorted(words) == sorted(["HELLO", *(f"W{number}" for number in range(8) for _ in range(2))])


async def test_input_takes_no_more_once_it_is_closed(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec, "wait") as (producer, submission):
        for number, segment in ((1, said("a", end=True)), (None, said("more")), (2, said("more")), (2, END)):
            if number == 1:
                await producer.send_segment(spec, submission.rid, segment, number=number)
                continue
            with pytest.raises(InputClosed, match="the input has ended"):
                await producer.send_segment(spec, submission.rid, segment, number=number)
        assert await producer.send_segment(spec, submission.rid, said("a", end=True), number=1) == 1, "it is known"
        listening_stages.gates["wait"].set()
        assert (await submission.result()).outputs[0].text == "WAIT A "
        with pytest.raises(InputClosed, match="is done"):
            await producer.send_segment(spec, submission.rid, said("more"))


async def test_bare_end_is_known_when_it_is_sent_again(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec, "wait") as (producer, submission):
        for _ in range(2):
            assert await producer.send_segment(spec, submission.rid, END, number=1) == 1
        with pytest.raises(RequestConflict, match="number 1"):
            await producer.send_segment(spec, submission.rid, said("a"), number=1)
        listening_stages.gates["wait"].set()
        assert (await submission.result()).outputs[0].text == "WAIT "


async def test_stage_ends_the_session_when_it_finishes_before_the_input(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission):
        await producer.send_segment(spec, submission.rid, said("bye"))
        assert (await submission.result()).outputs[0].text == "HELLO BYE "
        with pytest.raises(InputClosed, match="is done"):
            await producer.send_segment(spec, submission.rid, said("more"))
        await nothing_stays(connection, spec)


@pytest.mark.parametrize("how", ["cancel", "deadline", "silence", "failure"])
async def test_session_ends_and_leaves_nothing_when(connection: Connection, pipeline: str, how: str) -> None:
    fields: dict[str, Any] = {"deadline": {"deadline": 1.0}, "silence": {"input_timeout": 0.3}}.get(how, {})
    spec = pipeline_of(pipeline, "echo", max_attempts=1, **fields)
    async with session(connection, spec) as (producer, submission):
        await producer.send_segment(spec, submission.rid, said("fail once" if how == "failure" else "a"))
        await eventually(lambda: "hello" in listening_stages.heard, LONG)
        if how == "cancel":
            await producer.cancel(spec.name, submission.rid)
        result = await submission.result()
        codes = {
            "cancel": "cancelled", "deadline": "deadline_exceeded", "silence": "input_timeout",
            "failure": "engine_error",
        }  # fmt: skip
        assert result.failure is not None
        assert result.failure.code == codes[how]
        with pytest.raises(InputClosed, match=f"is {result.state}"):
            await producer.send_segment(spec, submission.rid, said("more"))
        await nothing_stays(connection, spec)
        if how == "failure":
            admin = await DeadLetterAdmin.open(producer, spec)
            with pytest.raises(RequestConflict, match="send it anew"):
                await admin.retry(submission.rid)


async def test_silence_counts_while_the_stage_waits_and_not_while_it_works(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline, input_timeout=1.0)
    async with session(connection, spec, "wait") as (producer, submission):
        await asyncio.wait({asyncio.create_task(submission.result())}, timeout=1.5)
        listening_stages.gates["wait"].set()
        await producer.send_segment(spec, submission.rid, said("late", end=True))
        assert (await producer.wait(spec.name, submission.rid)).outputs[0].text == "WAIT LATE "


async def test_segment_is_refused_when_the_request_is_another_tenants_unknown_or_whole(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline)
    async with serving(connection, spec) as producer:
        request = Request(prompt="hello", resumable=True, tenant="ann")
        mine = await producer.submit(spec, request)
        with pytest.raises(UnknownRequest):
            await producer.send_segment(spec, mine.rid, said("a"), tenant="bob")
        with pytest.raises(UnknownRequest):
            await producer.send_segment(spec, "nobody", said("a"))
        assert await producer.send_segment(spec, mine.rid, END, tenant="ann") == 1
        assert (await mine.result()).outputs[0].text == "HELLO "
    whole = pipeline_of(f"{pipeline}w", "deaf")
    async with serving(connection, whole) as producer:
        plain = await producer.submit(whole, Request(prompt="x"))
        with pytest.raises(InvalidRequest, match="was whole"):
            await producer.send_segment(whole, plain.rid, said("a"))


async def test_malformed_segment_changes_nothing(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = pipeline_of(pipeline, max_prompt_bytes=2048, max_flow_bytes=1 << 20)
    wrong: dict[Segment, type[OmnibusError]] = {
        Segment(): InvalidRequest,
        Segment(prompt=" "): EmptyPrompt,
        Segment(prompt="a", messages=(Message(role="user", content="b"),)): InvalidRequest,
        Segment(prompt=7): InvalidRequest,  # type: ignore[arg-type]
        said("x" * 4096): RequestTooLarge,
    }
    async with session(connection, spec) as (producer, submission):
        for segment, error in wrong.items():
            with pytest.raises(error):
                await producer.send_segment(spec, submission.rid, segment)
        monkeypatch.setattr(segments, "MOST_SEGMENTS", 1)
        await producer.send_segment(spec, submission.rid, said("a"))
        with pytest.raises(RequestTooLarge, match="up to 1 segments"):
            await producer.send_segment(spec, submission.rid, said("b"))
        monkeypatch.undo()
        assert await producer.send_segment(spec, submission.rid, END) == 2
        assert (await submission.result()).outputs[0].text == "HELLO A "


async def test_input_is_bounded_in_bytes(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, "kinds", max_flow_bytes=1 << 20)
    async with session(connection, spec) as (producer, submission):
        for _ in range(2):
            await producer.send_segment(spec, submission.rid, said("x" * 400_000))
        with pytest.raises(RequestTooLarge, match="max_flow_bytes"):
            await producer.send_segment(spec, submission.rid, said("x" * 400_000))
        await producer.send_segment(spec, submission.rid, END)
        assert (await submission.result()).outputs[0].text == "text:5 text:400000 text:400000"


async def test_segments_have_ids_and_turns_of_a_chat(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, "kinds")
    async with session(connection, spec) as (producer, submission):
        await producer.send_segment(spec, submission.rid, Segment(prompt=(1, 2, 3)))
        turns = (Message(role="user", content="hi"),)
        await producer.send_segment(spec, submission.rid, Segment(messages=turns, end=True))
        assert (await submission.result()).outputs[0].text == "text:5 text:0+token_ids:3 messages:1+text:2"


async def test_same_id_attaches_by_the_first_segment_and_whether_more_follow(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission):
        await producer.send_segment(spec, submission.rid, said("a"))
        again = await producer.submit(spec, Request(prompt="hello", resumable=True), rid=submission.rid)
        assert again.attached
        with pytest.raises(RequestConflict):
            await producer.submit(spec, Request(prompt="hello"), rid=submission.rid)
        await producer.send_segment(spec, submission.rid, END)
        assert (await again.result()).outputs[0].text == "HELLO A "


async def test_stage_that_does_not_read_its_input_fails_the_request(connection: Connection, pipeline: str) -> None:
    async with session(connection, pipeline_of(pipeline, "deaf")) as (_, submission):
        result = await submission.result()
        assert result.failure is not None
        assert (result.failure.code, "has not read it" in result.failure.message) == ("invalid_request", True)


async def test_open_input_is_refused_by_name_when_a_stage_cannot_take_it(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, deadline=LONG, stages=(sim(0, final="text"),))
    async with serving(connection, spec) as producer:
        with pytest.raises(InvalidRequest, match=r"stage 's0' has the engine sim.*whole prompt") as caught:
            await producer.submit(spec, Request(prompt="a", resumable=True))
        assert caught.value.param == "resumable"
    python = pipeline_of(f"{pipeline}p", input_timeout=None)
    async with serving(connection, python) as producer:
        with pytest.raises(InvalidRequest, match="input_timeout"):
            await producer.submit(python, Request(prompt="a", resumable=True))
