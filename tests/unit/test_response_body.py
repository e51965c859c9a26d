"""Bodies of `/v1/responses` as chats: what each field means, and by which name it is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from omnibus.errors import InvalidRequest, RequestError
from omnibus.frontdoor.body_route import naming_fields, parse
from omnibus.frontdoor.responses.chat_turns import ChatTurns, file_ids
from omnibus.frontdoor.responses.input_items import shapes_of
from omnibus.frontdoor.responses.response_body import EarlierTurns, ResponseBody, response_request
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import AudioPart, ChatOptions, FunctionCall, ImagePart, Message, Request, TextPart, ToolCall
from tests.unit.test_frontdoor_asking import LLM, OMNI, PAINTER, PNG_URL

pytestmark = pytest.mark.unit
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
CLOCK = {"type": "function", "name": "clock", "description": "The time"}
PAINT = {"type": "image_generation"}
WAV = base64.b64encode(b"a sound").decode()


def body(given: Any = "hello", **fields: Any) -> ResponseBody:
    made = parse(json.dumps({"input": given, **fields}).encode(), ResponseBody)
    turns = ChatTurns(dict.fromkeys(file_ids(made.own_items), PNG_URL))
    if made.instructions:
        turns.instruct(made.instructions)
    turns.add(made.own_items, "input", numbered=not isinstance(made.input, str))
    made.going_on(EarlierTurns(turns, []))
    return made


def request(given: Any = "hello", spec: PipelineSpec = LLM, **fields: Any) -> Request:
    made = body(given, **fields)
    with naming_fields(made.field_of):
        return response_request(made, spec)


def test_a_text_is_a_turn_behind_the_instructions() -> None:
    made = request(instructions="Be brief.", temperature=0.5, max_output_tokens=7, top_p=0.5, seed=3, user="me")
    assert made.messages == (Message(role="system", content="Be brief."), Message(role="user", content="hello"))
    params = {"temperature": 0.5, "max_tokens": 7, "top_p": 0.5, "seed": 3}
    assert (made.sampling_params, made.modalities, made.tenant) == ({"say": params}, ("text",), "me")


def test_items_are_the_turns_of_an_agent() -> None:
    made = request(
        [
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "c1", "output": "fine"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
            {
                "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Fine.", "annotations": [], "logprobs": []}],
            },
            {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aaaa"},
            {"role": "user", "content": "thanks"},
        ]
    )  # fmt: skip
    calls = tuple(
        ToolCall(id=i, function=FunctionCall(name=name, arguments="{}")) for i, name in (("c1", "weather"), ("c2", "clock"))
    )  # fmt: skip
    assert made.messages == (
        Message(role="user", content=(TextPart(text="weather?"),)),
        Message(role="assistant", reasoning="Hm.", tool_calls=calls),
        Message(role="tool", content="fine", tool_call_id="c1"),
        Message(role="tool", content=(TextPart(text="noon"),), tool_call_id="c2"),
        Message(role="assistant", content="Fine."),
        Message(role="user", content="thanks"),
    )


def test_files_are_what_their_type_says() -> None:
    parts = [
        {"type": "input_image", "image_url": PNG_URL, "detail": "auto"},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_file", "filename": "a.png", "file_data": PNG_URL},
        {"type": "input_file", "file_data": f"data:audio/wav;base64,{WAV}"},
        {"type": "input_file", "file_data": "data:text/plain;base64,aGk="},
        {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}},
    ]
    (turn,) = request([{"role": "user", "content": parts}], OMNI).messages or ()
    assert [type(part) for part in turn.content] == [ImagePart, ImagePart, ImagePart, AudioPart, TextPart, AudioPart]
    assert turn.content[3] == turn.content[5]


@pytest.mark.parametrize(
    ("choice", "names", "chosen"),
    [
        ("required", ["weather", "clock"], "required"),
        ({"type": "function", "name": "clock"}, ["weather", "clock"], {"type": "function", "function": {"name": "clock"}}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}, ["clock"],
            "required",
        ),
    ],
)  # fmt: skip
def test_functions_and_the_choice_among_them_are_a_chats(choice: Any, names: list[str], chosen: Any) -> None:
    made = request(tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False)
    assert made.chat is not None
    assert [tool["function"]["name"] for tool in made.chat.tools or ()] == names
    assert (made.chat.tool_choice, made.chat.parallel_tool_calls) == (chosen, False)


def test_the_form_of_the_text_and_the_effort_are_a_chats() -> None:
    schema = {"type": "object", "properties": {}}
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}, "verbosity": "medium"}
    made = request(text=wanted, reasoning={"effort": "low", "summary": None}, include=["message.output_text.logprobs"])
    assert made.chat == ChatOptions(reasoning_effort="low")
    assert made.sampling_params["say"] == {"structured_outputs": {"json": schema}, "logprobs": 0}
    assert request(top_logprobs=3).sampling_params["say"] == {"logprobs": 3}
    assert request(text={"format": {"type": "text"}}).sampling_params == {}


@pytest.mark.parametrize(
    ("fields", "spec", "modalities"),
    [
        ({"tools": [PAINT]}, OMNI, ("text", "image")),
        ({"tools": [PAINT], "tool_choice": "required"}, OMNI, ("text", "image")),
        ({"tools": [PAINT], "tool_choice": {"type": "image_generation"}}, OMNI, ("image",)),
        ({"tools": [PAINT], "tool_choice": "none"}, OMNI, ("text",)),
        ({"tools": [PAINT]}, PAINTER, ("image",)),
        ({}, OMNI, ("text",)),
    ],
)
def test_pictures_are_painted_when_the_tool_may_be_used(
    fields: Any, spec: PipelineSpec, modalities: tuple[str, ...]
) -> None:
    assert request(spec=spec, **fields).modalities == modalities


def test_the_tools_fields_go_to_the_stage_that_paints() -> None:
    tool = {**PAINT, "size": "64x32", "output_format": "webp", "quality": "auto", "partial_images": 1}
    made = request(spec=PAINTER, tools=[tool], stream=True)
    assert made.sampling_params == {"dit": {"width": 64, "height": 32, "previews": 1}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["web_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**PAINT, "quality": "high"}]}, "tools[0].quality"),
        ({"tools": [PAINT]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "image_generation"}}, "tool_choice"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [CLOCK]}},
            "tool_choice.tools",
        ),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"given": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"given": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"given": [{"role": "user", "content": [{"type": "nothing"}]}]}, "input[0].content[0].type"),
        (
            {"given": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,?"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {
                "given": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "?"}}]}],
                "instructions": "Be brief.",
            },
            "input[0].content[0].input_audio",
        ),
        ({"lane": "batch", "seed": "x"}, "seed"),
    ],
)
def test_what_has_no_effect_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        request(fields.pop("given", "hello"), **fields)
    assert refused.value.param == param


def test_names_of_admission_and_of_engines_are_the_callers() -> None:
    made = body(
        [
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            {"role": "user", "content": [{"type": "input_image", "image_url": PNG_URL}]},
        ],
        instructions="Be brief.", tools=[WEATHER], top_logprobs=1,
    )  # fmt: skip
    called = {
        "messages[0]": "instructions",
        "messages[3].content[0].image": "input[2].content[0].image_url",
        "messages[3].content[0].image_url.url": "input[2].content[0].image_url",
        "prompt": "input", "messages": "input", "max_tokens": "max_output_tokens", "structured_outputs": "text.format",
        "response_format.type": "text.format.type", "tools[0].function.parameters": "tools[0].parameters",
        "logprobs": "top_logprobs", "modalities": "tools", "reasoning_effort": "reasoning.effort", "model": "model",
    }  # fmt: skip
    assert {name: made.field_of(name) for name in called} == called


def test_kept_items_have_ids_and_parts() -> None:
    text, turn = shapes_of("hi", "resp_00"), shapes_of(body([{"role": "assistant", "content": "yes"}]).input, "resp_00")
    assert text == [
        {
            "id": "in_000000", "type": "message", "role": "user", "status": "completed",
            "content": [{"type": "input_text", "text": "hi"}],
        }
    ]  # fmt: skip
    assert turn[0]["content"] == [{"type": "output_text", "text": "yes"}]


def test_a_file_is_named_by_one_of_both() -> None:
    with pytest.raises(InvalidRequest, match="one of image_url and file_id"):
        body([{"role": "user", "content": [{"type": "input_image", "image_url": PNG_URL, "file_id": "file-1"}]}])
