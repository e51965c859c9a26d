"""A field that asks for something has an effect or is refused in the caller's words; one that asks for nothing passes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.bodies import AskingBody, Body
from omnibus.frontdoor.body_route import parse
from omnibus.frontdoor.endpoints.chat import ChatBody, chat_request
from omnibus.frontdoor.endpoints.completions import CompletionBody
from omnibus.frontdoor.endpoints.images import ImageBody, image_request
from omnibus.frontdoor.endpoints.request_input import SegmentBody
from omnibus.frontdoor.endpoints.speech import SpeechBody
from omnibus.frontdoor.unread_fields import DEFAULTS, SENT_FOR_NO_REASON
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import FunctionCall, Message, ToolCall

pytestmark = pytest.mark.unit
PAINTER = PipelineSpec(
    name="painter",
    stages=(StageSpec(stage_id=0, name="dit", engine="diffusers", final_output=True, final_output_type="image"),),
)
LLM = PipelineSpec(
    name="llm", stages=(StageSpec(stage_id=0, name="say", engine="vllm", final_output=True, final_output_type="text"),)
)
CODE = PipelineSpec(
    name="code",
    stages=(
        StageSpec(stage_id=0, name="say", engine="python", model="m:f", final_output=True, final_output_type="text"),
    ),
)
REQUIRED: dict[type[AskingBody], dict[str, Any]] = {
    ChatBody: {"messages": [{"role": "user", "content": "hi"}]},
    CompletionBody: {"prompt": "hi"},
    ImageBody: {"prompt": "hi"},
    SpeechBody: {"input": "hi"},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def body(kind: type[AskingBody], **fields: Any) -> Any:
    return parse(json.dumps({**REQUIRED[kind], **fields}).encode(), kind)


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", **fields}]}


@pytest.mark.parametrize("kind", REQUIRED)
@pytest.mark.parametrize("nothing", [None, False, "", [], {}])
def test_an_unknown_field_passes_when_it_asks_for_nothing(kind: type[AskingBody], nothing: object) -> None:
    body(kind, newfangled=nothing)


@pytest.mark.parametrize("kind", REQUIRED)
@pytest.mark.parametrize("something", [True, 0, 1, 0.5, "x", ["x"], {"x": None}])
def test_an_unknown_field_is_refused_by_name_when_it_asks_for_something(
    kind: type[AskingBody], something: object
) -> None:
    with pytest.raises(InvalidRequest, match="not supported") as refused:
        body(kind, newfangled=something)
    assert refused.value.param == "newfangled"


@pytest.mark.parametrize("kind", REQUIRED)
def test_fields_that_clients_send_for_no_reason_pass_with_any_value(kind: type[AskingBody]) -> None:
    body(kind, **{name: {"any": "thing"} for name in SENT_FOR_NO_REASON - kind.model_fields.keys()})


@pytest.mark.parametrize("kind", REQUIRED)
def test_defaults_of_other_servers_pass(kind: type[AskingBody]) -> None:
    for name in DEFAULTS.keys() - kind.model_fields.keys():
        for value in DEFAULTS[name]:
            body(kind, **{name: value})


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (ChatBody, {"web_search_options": {"a": 1}}, "web_search_options"),
        (ChatBody, {"n": True}, "n"),
        (ChatBody, {"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        (ChatBody, {"stream_options": {"include_usages": True}}, "stream_options.include_usages"),
        (ChatBody, {"audio": {"speed": 2}}, "audio.speed"),
        (ChatBody, turn(audio={"id": "audio-1"}), "messages[1].audio"),
        (ChatBody, turn(content=[{"type": "text", "text": "a", "bold": True}]), "messages[1].content[0].bold"),
        (ChatBody, turn(tool_calls=[{**CALL, "weight": 2}]), "messages[1].tool_calls[0].weight"),
        (ChatBody, {"size": "64x64"}, "size"),
        (CompletionBody, {"suffix": "."}, "suffix"),
        (CompletionBody, {"tools": [{"type": "function"}]}, "tools"),
        (CompletionBody, {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        (ImageBody, {"width": 64}, "width"),
        (ImageBody, {"image": "data:image/png;base64,aGk="}, "image"),
        (ImageBody, {"output_compression": 10}, "output_compression"),
        (ImageBody, {"background": "transparent"}, "background"),
        (ImageBody, {"temperature": 0.5}, "temperature"),
        (SpeechBody, {"pitch": 2}, "pitch"),
    ],
)
def test_what_is_not_there_is_refused_with_its_path(kind: type[AskingBody], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        body(kind, **fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("made", "param"),
    [
        (lambda: chat_request(body(ChatBody, temperature=0.5), PAINTER), "temperature"),
        (lambda: chat_request(body(ChatBody, stop=["x"]), PAINTER), "stop"),
        (lambda: chat_request(body(ChatBody, skip_special_tokens=False), PAINTER), "skip_special_tokens"),
        (lambda: chat_request(body(ChatBody, logprobs=True), PAINTER), "logprobs"),
        (lambda: chat_request(body(ChatBody, audio={"format": "mp3"}), LLM), "audio"),
        (lambda: image_request(body(ImageBody, n=2), _with_image(LLM)), "n"),
    ],
)
def test_a_parameter_is_refused_when_no_stage_reads_it(made: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        made()
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "[a-z]+"}, "guided_regex"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop_token_ids": [7]}, "stop_token_ids"),
        ({"logit_bias": {"5": -100}}, "logit_bias"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 2}, "prompt_logprobs"),
    ],
)
def test_parameters_of_tokens_are_refused_when_the_text_is_a_functions(fields: dict[str, Any], param: str) -> None:
    sent = body(ChatBody, **fields, temperature=0.5)
    assert "say" in chat_request(sent, LLM).sampling_params
    with pytest.raises(InvalidRequest) as refused:
        chat_request(sent, CODE)
    assert refused.value.param is not None
    assert sent.field_of(refused.value.param) == param


def test_a_function_is_given_any_parameter_by_its_stage() -> None:
    sent = body(ChatBody, temperature=0.5, sampling_params={"say": {"stop_token_ids": [7]}})
    assert chat_request(sent, CODE).sampling_params == {"say": {"temperature": 0.5, "stop_token_ids": [7]}}


def _with_image(spec: PipelineSpec) -> PipelineSpec:
    last = StageSpec(
        stage_id=1, name="draw", engine="transformers", input_sources=(0,), final_output=True, final_output_type="image"
    )
    return PipelineSpec(name="odd", stages=(*spec.stages, last))


def test_parameters_that_change_nothing_need_nobody_to_read_them() -> None:
    request = chat_request(body(ChatBody, temperature=1.0, top_p=1, stop=[], frequency_penalty=0), PAINTER)
    assert request.sampling_params == {}


def test_calls_and_names_of_earlier_turns_are_kept() -> None:
    messages = [
        {"role": "user", "content": "weather?", "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": None, "refusal": "no more", "tool_calls": []},
    ]
    assert chat_request(body(ChatBody, messages=messages), LLM).messages == (
        Message(role="user", content="weather?", name="ada"),
        Message(role="assistant", tool_calls=(ToolCall(id="c1", function=FunctionCall(name="f", arguments="{}")),)),
        Message(role="tool", content="sunny", tool_call_id="c1"),
        Message(role="assistant", content="no more"),
    )


@pytest.mark.parametrize(
    ("asked", "found", "told"),
    [
        (body(ChatBody, max_completion_tokens=5), "max_tokens", "max_completion_tokens"),
        (body(ChatBody, max_tokens=5), "max_tokens", "max_tokens"),
        (body(ChatBody), "messages[1].content[0].image", "messages[1].content[0].image_url"),
        (body(ChatBody), "messages[1].content[0].audio", "messages[1].content[0].input_audio"),
        (body(ChatBody), "messages[1].content[0].video", "messages[1].content[0].video_url"),
        (body(ChatBody), "messages[0].name", "messages[0].name"),
        (body(ChatBody), "prompt", "messages"),
        (body(ChatBody, sampling_params={"say": {"top_k": 1}}), "top_k", "sampling_params.say.top_k"),
        (body(ChatBody, sampling_params_list=[None, {"top_k": 1}]), "top_k", "sampling_params_list[1].top_k"),
        (body(CompletionBody), "token_ids", "prompt"),
        (body(ImageBody), "messages[0].content", "prompt"),
        (body(ImageBody), "width", "size"),
        (body(ImageBody), "previews", "partial_images"),
        (body(SpeechBody), "prompt", "input"),
        (body(SpeechBody), "seed", "seed"),
    ],
)
def test_errors_name_fields_as_the_caller_does(asked: AskingBody, found: str, told: str) -> None:
    assert asked.field_of(found) == told


@pytest.mark.parametrize(("kind", "has_parameters"), [(SegmentBody, False), (SpeechBody, True)])
def test_sampling_params_are_advised_where_the_body_has_them_only(kind: type[Body], has_parameters: bool) -> None:
    with pytest.raises(InvalidRequest, match="not supported: leave it out") as refused:
        parse(json.dumps({"prompt" if kind is SegmentBody else "input": "hi", "newfangled": 1}).encode(), kind)
    assert ("sampling_params" in refused.value.message) is has_parameters
