"""Answers with more than a text, from a stage without an engine to the unmodified `openai` package and to Python clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.client.request_events import Ended, FieldPiece, OutputArrived, TextPiece
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import Request
from tests.support.answering_stage import (
    ARGUMENTS,
    CALL_ID,
    OTHER,
    REASONING,
    TOKENS,
    attempts,
    go_on,
    line,
)
from tests.support.front import Front, front

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    go_on.clear()
    attempts.clear()
    yield
    go_on.set()


def spec_of(pipeline: str) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="answerer", engine="python", model="tests.support.answering_stage:answer", slots=4,
        final_output=True, final_output_type="text",
    )  # fmt: skip
    return PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline)) as made:
        yield made


def chat(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}]}


async def test_a_whole_answer_has_reasoning_calls_probabilities_and_choices(front_door: Front) -> None:
    answer = await front_door.openai.chat.completions.create(model=front_door.spec.name, **chat("calls twice"))
    first, second = answer.choices
    assert first.message.content == "".join(TOKENS)
    assert first.message.reasoning == first.message.reasoning_content == "".join(REASONING)
    (call,) = first.message.tool_calls
    assert (call.id, call.type) == (CALL_ID, "function")
    assert (call.function.name, call.function.arguments) == ("weather", "".join(ARGUMENTS))
    assert first.finish_reason == "tool_calls"
    assert [entry.token for entry in first.logprobs.content] == TOKENS
    assert (second.index, second.message.content, second.finish_reason) == (1, "".join(OTHER), "stop")


async def test_a_streamed_answer_has_the_same_in_the_order_in_which_it_was_made(front_door: Front) -> None:
    stream = front_door.openai.chat.completions.stream(model=front_door.spec.name, **chat("calls twice"))
    async with stream as events:
        chunks = [event.chunk async for event in events if event.type == "chunk"]
        whole = await events.get_final_completion()
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == 0]
    kinds = [
        "reasoning" if getattr(delta, "reasoning", None) else "call" if delta.tool_calls else "text"
        for delta in deltas
        if getattr(delta, "reasoning", None) or delta.tool_calls or delta.content
    ]
    assert sorted(kinds, key=["reasoning", "text", "call"].index) == kinds
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == "".join(REASONING)
    first, second = whole.choices
    assert first.message.content == "".join(TOKENS)
    (call,) = first.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == (CALL_ID, "weather", "".join(ARGUMENTS))
    assert [entry.token for entry in first.logprobs.content] == TOKENS
    assert (first.finish_reason, second.finish_reason) == ("tool_calls", "stop")
    assert second.message.content == "".join(OTHER)


async def test_a_python_client_gets_fields_as_pieces_and_typed_in_the_result(front_door: Front) -> None:
    submission = await front_door.producer.submit(front_door.spec, Request(prompt="calls twice"))
    events = [event async for event in submission.events()]
    fields: dict[str, str] = {}
    for event in events:
        if isinstance(event, FieldPiece):
            fields[event.name] = fields.get(event.name, "") + event.text
    (output,) = [event.output for event in events if isinstance(event, OutputArrived)]
    assert fields == output.fields
    assert fields["logprobs"] == "".join(map(line, TOKENS))
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == output.text == "".join(TOKENS)
    assert isinstance(events[-1], Ended)
    assert output.reasoning == "".join(REASONING)
    assert [call.function.name for call in output.tool_calls] == ["weather"]
    assert [choice.text for choice in output.choices] == ["".join(TOKENS), "".join(OTHER)]
    again = (await front_door.producer.result(front_door.spec.name, submission.rid)).outputs[0]
    assert again.fields == output.fields


async def test_fields_are_kept_as_far_as_they_had_come_when_their_request_is_cancelled(front_door: Front) -> None:
    submission = await front_door.producer.submit(front_door.spec, Request(prompt="fail calls"))
    pieces: dict[str, str] = {}
    async with aclosing(submission.events()) as events:
        async for event in events:
            if isinstance(event, FieldPiece):
                pieces[event.name] = pieces.get(event.name, "") + event.text
            if "reasoning" in pieces:
                break
        cancelled = await front_door.producer.cancel(front_door.spec.name, submission.rid)
        rest = [event async for event in events]
    go_on.set()
    (kept,) = cancelled.outputs
    assert kept.finish_reason == "abort"
    assert kept.reasoning
    assert "".join(REASONING).startswith(kept.reasoning)
    (arrived,) = [event.output for event in rest if isinstance(event, OutputArrived)]
    assert arrived.reasoning is not None
    assert arrived.reasoning.startswith(pieces["reasoning"])


async def test_nothing_comes_twice_when_a_later_attempt_makes_the_fields_again(front_door: Front) -> None:
    submission = await front_door.producer.submit(front_door.spec, Request(prompt="fail calls"))
    events = []
    async for event in submission.events():
        events.append(event)
        if isinstance(event, FieldPiece) and event.name == "reasoning":
            go_on.set()
    (output,) = [event.output for event in events if isinstance(event, OutputArrived)]
    assert len(attempts) == 2
    reasoning = "".join(event.text for event in events if isinstance(event, FieldPiece) and event.name == "reasoning")
    assert reasoning == output.reasoning == "".join(REASONING)
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "".join(TOKENS)
