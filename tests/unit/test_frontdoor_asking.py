"""Bodies as requests: what each field means to the pipeline, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from omnibus.errors import EmptyPrompt, InvalidRequest, RequestError, UnsupportedModality
from omnibus.frontdoor.endpoints.chat import ChatBody, chat_request
from omnibus.frontdoor.endpoints.completions import CompletionBody, completion_request
from omnibus.frontdoor.endpoints.images import ImageBody, image_request
from omnibus.frontdoor.endpoints.speech import SpeechBody, speech_request
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import AudioPart, ChatOptions, ImagePart, Message, TextPart

pytestmark = pytest.mark.unit

LLM = PipelineSpec(
    name="llm", stages=(StageSpec(stage_id=0, name="say", engine="vllm", final_output=True, final_output_type="text"),)
)
OMNI = PipelineSpec(
    name="omni",
    stages=(
        StageSpec(stage_id=0, name="thinker", engine="vllm", final_output=True, final_output_type="text"),
        StageSpec(
            stage_id=1, name="dit", engine="diffusers", input_sources=(0,), final_output=True, final_output_type="image"
        ),
        StageSpec(stage_id=2, name="talker", engine="vllm", input_sources=(0,)),
        StageSpec(
            stage_id=3,
            name="code2wav",
            engine="transformers",
            input_sources=(2,),
            final_output=True,
            final_output_type="audio",
        ),
    ),
)
PAINTER = PipelineSpec(
    name="painter",
    stages=(StageSpec(stage_id=0, name="dit", engine="diffusers", final_output=True, final_output_type="image"),),
)
PNG_URL = f"data:image/png;base64,{base64.b64encode(b'a png').decode()}"


def chat(**fields: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": [{"role": "user", "content": "hello"}], **fields})


def test_chat_asks_for_text_when_modalities_are_left_out() -> None:
    assert chat_request(chat(), OMNI).modalities == ("text",)


def test_chat_asks_for_everything_when_the_pipeline_has_no_text() -> None:
    assert chat_request(chat(), PAINTER).modalities is None


def test_text_parameters_go_to_the_stage_that_delivers_text() -> None:
    request = chat_request(chat(temperature=0.5, top_k=3, stop=["x"], max_completion_tokens=7, max_tokens=9), OMNI)
    assert request.sampling_params == {"thinker": {"temperature": 0.5, "top_k": 3, "stop": ["x"], "max_tokens": 7}}


def test_text_parameters_go_to_the_first_stage_when_no_text_is_delivered() -> None:
    request = chat_request(chat(temperature=0.0, modalities=["audio"]), OMNI)
    assert request.sampling_params == {"thinker": {"temperature": 0.0}}


def test_the_seed_goes_to_every_stage_that_runs_and_draws() -> None:
    request = chat_request(chat(seed=5, modalities=["image", "audio"]), OMNI)
    assert request.sampling_params == {"thinker": {"seed": 5}, "dit": {"seed": 5}, "talker": {"seed": 5}}
    assert chat_request(chat(seed=5), OMNI).sampling_params == {"thinker": {"seed": 5}}


def test_parameters_by_stage_override_the_list_which_overrides_the_rest() -> None:
    body = chat(
        temperature=0.1,
        sampling_params_list=[{"temperature": 0.2, "top_p": 0.3}, None, {"max_tokens": 4}],
        sampling_params={"0": {"temperature": 0.9}},
    )
    request = chat_request(body, OMNI)
    assert request.sampling_params == {"thinker": {"temperature": 0.9, "top_p": 0.3}, "talker": {"max_tokens": 4}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampling_params": {"nobody": {}}}, "sampling_params.nobody"),
        ({"sampling_params_list": [{}, {}, {}, {}, {}]}, "sampling_params_list"),
        ({"modalities": ["video"]}, "modalities"),
        ({"modalities": []}, "modalities"),
    ],
)
def test_chat_is_refused_when_it_names_what_the_pipeline_lacks(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat_request(chat(**fields), OMNI)
    assert refused.value.param == param


def test_media_parts_are_decoded() -> None:
    content = [
        {"type": "text", "text": "look and listen"},
        {"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"an mp3").decode(), "format": "mp3"}},
    ]
    request = chat_request(chat(messages=[{"role": "user", "content": content}]), OMNI)
    assert request.messages == (
        Message(
            role="user",
            content=(
                TextPart(text="look and listen"),
                ImagePart(data=b"a png", media_type="image/png"),
                AudioPart(data=b"an mp3", media_type="audio/mpeg"),
            ),
        ),
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/cat.png",
        "data:image/png,plain",
        "data:image/png;base64,%%%",
        "data:image/png;base64,",
        "data:text/plain;base64,aGk=",
        "cat.png",
    ],
)
def test_an_image_is_refused_when_it_is_not_a_base64_data_url_of_an_image(url: str) -> None:
    content = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(InvalidRequest) as refused:
        chat_request(chat(messages=[{"role": "user", "content": content}]), OMNI)
    assert refused.value.param == "messages[0].content[1].image_url.url"


def test_a_developer_speaks_as_the_system() -> None:
    request = chat_request(chat(messages=[{"role": "developer", "content": "be brief"}]), OMNI)
    assert request.messages == (Message(role="system", content="be brief"),)


def test_tenant_lane_priority_and_deadline_reach_the_request() -> None:
    request = chat_request(chat(user="alice", lane="batch", priority=3, deadline=9, stream=True), OMNI)
    assert (request.tenant, request.lane, request.priority, request.deadline) == ("alice", "batch", 3, 9.0)
    assert request.stream


@pytest.mark.parametrize(("priority", "lane"), [(1, "batch"), (0, "interactive"), (-1, "interactive")])
def test_a_request_takes_the_batch_lane_when_its_priority_says_that_it_may_wait(priority: int, lane: str) -> None:
    spec = msgspec.structs.replace(OMNI, lanes=("interactive", "batch"))
    assert chat_request(chat(priority=priority), spec).lane == lane
    assert chat_request(chat(priority=priority, lane="interactive"), spec).lane == "interactive"
    assert chat_request(chat(priority=priority), OMNI).lane == "interactive"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"tools": "f"}, "tools"),
        ({"logprobs": 3}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"seed": 1 << 63}, "seed"),
    ],
)
def test_a_chat_body_is_refused_when_a_field_is_wrong_or_asks_for_what_is_not_there(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        chat(**fields)
    assert refused.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat_request(chat(**fields), OMNI)
    assert refused.value.param == field


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}}},
            {"json": {"a": 1}},
        ),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_json": "{}"}, {"json": "{}"}),
    ],
)
def test_a_form_goes_to_the_stage_that_writes_text(fields: dict[str, Any], form: dict[str, Any]) -> None:
    request = chat_request(chat(**fields), LLM)
    assert request.sampling_params == {"say": {"structured_outputs": form}}


def test_probabilities_and_choices_go_to_the_stage_that_writes_text() -> None:
    request = chat_request(chat(logprobs=True, top_logprobs=2, n=3, prompt_logprobs=1), LLM)
    assert request.sampling_params == {"say": {"logprobs": 2, "n": 3, "prompt_logprobs": 1}}
    assert chat_request(chat(logprobs=True), LLM).sampling_params == {"say": {"logprobs": 0}}
    assert request.chat is None


def test_probabilities_of_a_prompt_are_refused_when_the_answer_streams() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_request(chat(prompt_logprobs=1, stream=True), LLM)
    assert caught.value.param == "prompt_logprobs"


def test_tools_and_what_the_template_reads_are_options_of_the_chat() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    asked = chat(tools=[tool], parallel_tool_calls=False, continue_final_message=True, chat_template_kwargs={"a": 1})
    assert chat_request(asked, LLM).chat == ChatOptions(
        tools=(tool,), parallel_tool_calls=False, continue_final_message=True, chat_template_kwargs={"a": 1}
    )


def test_fields_of_other_servers_are_let_through_when_they_ask_for_nothing() -> None:
    body = chat(
        n=1, tools=[], logprobs=False, response_format={"type": "text"}, service_tier="auto", metadata={"a": "b"}
    )
    assert chat_request(body, OMNI).modalities == ("text",)


@pytest.mark.parametrize(
    ("given", "prompt"),
    [("tell me", "tell me"), (["tell me"], "tell me"), ([1, 2, 3], (1, 2, 3)), ([[1, 2]], (1, 2))],
)
def test_completion_takes_one_prompt_in_every_shape(given: object, prompt: object) -> None:
    body = CompletionBody.model_validate({"prompt": given, "max_tokens": 5})
    request = completion_request(body, OMNI)
    assert request.prompt == prompt
    assert request.modalities == ("text",)
    assert request.sampling_params == {"thinker": {"max_tokens": 5}}


@pytest.mark.parametrize(("given", "error"), [(["a", "b"], InvalidRequest), ([], EmptyPrompt)])
def test_completion_is_refused_when_it_has_not_exactly_one_prompt(given: object, error: type[RequestError]) -> None:
    with pytest.raises(error):
        completion_request(CompletionBody.model_validate({"prompt": given}), OMNI)


def test_image_parameters_go_to_the_stage_that_paints() -> None:
    body = ImageBody.model_validate(
        {
            "prompt": "a cat",
            "n": 2,
            "size": "64x32",
            "seed": 1,
            "num_inference_steps": 8,
            "guidance_scale": 3,
            "negative_prompt": "dogs",
        }
    )
    request = image_request(body, OMNI)
    assert request.messages == (Message(role="user", content="a cat"),)
    assert request.modalities == ("image",)
    assert request.sampling_params == {
        "thinker": {"seed": 1},
        "dit": {
            "n": 2,
            "num_inference_steps": 8,
            "guidance_scale": 3.0,
            "negative_prompt": "dogs",
            "width": 64,
            "height": 32,
            "seed": 1,
        },
    }


def test_previews_are_asked_for_when_a_stream_wants_partial_images() -> None:
    fields = {"prompt": "a cat", "partial_images": 2, "num_inference_steps": 12}
    streamed = image_request(ImageBody.model_validate({**fields, "stream": True}), OMNI)
    whole = image_request(ImageBody.model_validate(fields), OMNI)
    assert streamed.sampling_params["dit"]["previews"] == 4
    assert "previews" not in whole.sampling_params["dit"]


@pytest.mark.parametrize("size", ["64", "64x", "0x64", "axb", "64x64x64", "4097x64", "64x99999"])
def test_an_image_size_is_refused_when_it_is_not_width_x_height_or_too_large(size: str) -> None:
    with pytest.raises(ValidationError):
        ImageBody.model_validate({"prompt": "a cat", "size": size})


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_inference_steps", 1001), ("num_inference_steps", 0), ("guidance_scale", 1001.0), ("priority", 1 << 31)],
)
def test_an_image_is_refused_when_a_number_is_out_of_bounds(field: str, value: float) -> None:
    with pytest.raises(ValidationError) as refused:
        ImageBody.model_validate({"prompt": "a cat", field: value})
    assert refused.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize("size", ["auto", "4096x4096", "1x1"])
def test_an_image_size_is_taken_when_it_is_within_bounds(size: str) -> None:
    assert ImageBody.model_validate({"prompt": "a cat", "size": size}).size == size


def test_image_and_speech_are_refused_when_the_text_is_blank() -> None:
    with pytest.raises(EmptyPrompt) as image:
        image_request(ImageBody(prompt=" "), OMNI)
    with pytest.raises(EmptyPrompt) as speech:
        speech_request(SpeechBody(input=""), OMNI)
    assert (image.value.param, speech.value.param) == ("prompt", "input")


def test_speech_and_completions_are_refused_when_the_model_cannot_do_them() -> None:
    with pytest.raises(UnsupportedModality):
        speech_request(SpeechBody(input="hi"), PAINTER)
    with pytest.raises(UnsupportedModality):
        completion_request(CompletionBody(prompt="hi"), PAINTER)


@pytest.mark.parametrize(
    "fields",
    [
        {"speed": 5.0},
        {"speed": 0.0},
        {"voice": 7},
        {"response_format": "vorbis"},
        {"stream": 1},
        {"stream_format": "websocket"},
    ],
)
def test_speech_is_refused_when_it_asks_for_what_is_not_there(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SpeechBody.model_validate({"input": "hi", **fields})


@pytest.mark.parametrize(("stream", "streams"), [(None, True), (True, True), (False, False)])
def test_speech_is_streamed_unless_its_caller_wants_it_whole(stream: bool | None, streams: bool) -> None:
    assert speech_request(SpeechBody(input="hi", stream=stream), OMNI).stream is streams


def test_what_steers_a_request_is_taken_from_the_body() -> None:
    steering = {"affinity": "chat-7", "cache_salt": "mine", "mm_processor_kwargs": {"max_pixels": 64}}
    request = chat_request(ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}], **steering}), OMNI)
    assert {name: getattr(request, name) for name in steering} == steering
