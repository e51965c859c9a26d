"""Options of a chat and forms of a text that are refused before anything is queued."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from omnibus.errors import InvalidRequest
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.chat_checks import check_structured
from omnibus.requests.request_checks import validate
from omnibus.wire.request import ChatOptions, Message, Request

pytestmark = pytest.mark.unit
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CHAT = Request(messages=(Message(role="user", content="hi"),))


def llm(engine: str = "vllm", **engine_args: Any) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="say", engine=engine, model="m:f", final_output=True, final_output_type="text",
        engine_args=engine_args,
    )  # fmt: skip
    return PipelineSpec(name="llm", stages=(stage,))


def refused(spec: PipelineSpec, request: Request) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        validate(spec, request)
    return caught.value.param


def asking(**options: Any) -> Request:
    return msgspec.structs.replace(CHAT, chat=ChatOptions(**options))


def test_tools_need_a_parser_that_finds_calls() -> None:
    assert refused(llm(), asking(tools=(TOOL,))) == "tools"
    validate(llm(), asking(tools=(TOOL,), tool_choice="none"))
    validate(llm(tool_call_parser="hermes"), asking(tools=(TOOL,)))


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "fn", "function": {"name": "f"}}, "tools[1].type"),
        ({"type": "function"}, "tools[1].function"),
        ({"type": "function", "function": {"parameters": {}}}, "tools[1].function.name"),
        ({"type": "function", "function": {"name": "f", "parameters": "{}"}}, "tools[1].function.parameters"),
        (
            {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "nothing"}}},
            "tools[1].function.parameters",
        ),
    ],
)
def test_a_tool_that_is_none_is_refused_by_its_place(tool: dict[str, Any], param: str) -> None:
    assert refused(llm(tool_call_parser="hermes"), asking(tools=(TOOL, tool))) == param


def test_options_of_a_chat_need_a_template_that_reads_them() -> None:
    assert refused(llm("python"), asking(continue_final_message=True)) == "continue_final_message"
    validate(llm(), asking(continue_final_message=True))


def test_options_of_a_chat_need_messages() -> None:
    assert refused(llm(), Request(prompt="hi", chat=ChatOptions(reasoning_effort="low"))) == "reasoning_effort"


def test_a_choice_needs_tools() -> None:
    assert refused(llm(tool_call_parser="hermes"), asking(tool_choice="required")) == "tool_choice"


@pytest.mark.parametrize(
    "form",
    [
        {}, {"json": {"type": "nothing"}}, {"json": "{"}, {"json": "[]"}, {"regex": "a", "choice": ["b"]}, {"choice": []},
        {"choice": [1]}, {"regex": " "}, {"grammar": 3}, {"json_object": False}, {"yaml": "x"}, "json",
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_refused(form: Any) -> None:
    request = msgspec.structs.replace(CHAT, sampling_params={"say": {"structured_outputs": form}})
    assert refused(llm(), request) == "structured_outputs"


@pytest.mark.parametrize(
    "form",
    [
        {"json": {"type": "object", "properties": {"a": {"type": "integer"}}}}, {"json": '{"type": "string"}'},
        {"json_object": True}, {"regex": "[0-9]+"}, {"choice": ["a"]}, {"grammar": 'root ::= "a"'},
    ],
)  # fmt: skip
def test_a_form_passes(form: Any) -> None:
    validate(llm(), msgspec.structs.replace(CHAT, sampling_params={"0": {"structured_outputs": form}}))


def test_large_schema_takes_no_seconds_of_the_event_loop() -> None:
    properties = {f"p{number}": {"type": "string", "minLength": number} for number in range(30_000)}
    began = time.process_time()
    check_structured({"json": {"type": "object", "properties": properties}})
    assert time.process_time() - began < 2.0
