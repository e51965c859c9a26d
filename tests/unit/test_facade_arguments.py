"""Arguments of the façades: each has an effect on the request, or is refused by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from omnibus.client.request_arguments import as_request, make_request
from omnibus.errors import InvalidRequest
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.request_checks import validate
from omnibus.wire.request import Message, Request
from tests.support.flow import sim

pytestmark = pytest.mark.unit

VLLM = StageSpec(
    stage_id=3, name="llm", engine="vllm", model="m", input_sources=(0,), final_output=True, final_output_type="json",
    engine_args={"scheduling_policy": "priority", "lora_modules": {"pirate": "/adapters/pirate"}},
)  # fmt: skip
SPEC = PipelineSpec(
    name="p",
    lanes=("interactive", "batch"),
    stages=(sim(0, final="text"), sim(1, 0, final="image"), sim(2, 0, final="audio"), VLLM),
)
PLAIN = PipelineSpec(name="p", stages=(sim(0, final="text"), sim(1, 0, final="image"), sim(2, 1, final="image")))


def made(spec: PipelineSpec = SPEC, **arguments: Any) -> Request:
    return make_request(spec, "hi", **arguments)


class Adapter:
    lora_name = "pirate"


class Params(msgspec.Struct):
    """Shaped as vLLM's SamplingParams."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    watermarking: str | None = None
    _private: int = 0


@pytest.mark.parametrize(
    ("prompt", "request_made"),
    [
        ("hi", Request(prompt="hi")),
        ([1, 2], Request(prompt=(1, 2))),
        ({"prompt_token_ids": [3]}, Request(prompt=(3,))),
        ({"prompt": "hi", "tenant": "t"}, Request(prompt="hi", tenant="t")),
        ({"prompt": "hi", "affinity": "chat-7"}, Request(prompt="hi", affinity="chat-7")),
        (
            {"prompt": "hi", "mm_processor_kwargs": {"max_pixels": 64}},
            Request(prompt="hi", mm_processor_kwargs={"max_pixels": 64}),
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, Request(messages=(Message(role="user", content="x"),))),
        (Request(prompt="as it is"), Request(prompt="as it is")),
    ],
)
def test_prompt_becomes_a_request_in_every_form(prompt: Any, request_made: Request) -> None:
    assert as_request(prompt) == request_made


@pytest.mark.parametrize("prompt", [["a", "b"], {"prompt": 1}, {"text": "x"}, 7, None])
def test_prompt_is_refused_when_it_is_none(prompt: Any) -> None:
    with pytest.raises(InvalidRequest):
        as_request(prompt)


def test_every_accepted_argument_changes_the_request() -> None:
    """Known defect elsewhere: arguments that are accepted and dropped."""
    assert made(trace_headers={"traceparent": "00"}).trace == {"traceparent": "00"}
    assert made(lora_request="pirate").lora == made(lora_request=Adapter()).lora == "pirate"
    assert made(modalities=["text"]).modalities == ("text",)
    assert made(deadline=3.0).deadline == 3.0
    assert made(resumable=True).resumable
    assert (made(priority=5).priority, made(priority=5).lane) == (5, "batch")
    assert (made(priority=-5).priority, made(priority=-5).lane) == (-5, "interactive")


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"data_parallel_rank": 0}, "data_parallel_rank"),
        ({"lora_request": "nobody"}, "lora_request"),
        ({"sampling_params_list": [{}]}, "sampling_params_list"),
        ({"sampling_params_list": {"a": 1}}, "sampling_params_list"),
        ({"sampling_params_list": [1, None, None, None]}, "sampling_params_list"),
        ({"final_stage_id": 9}, "final_stage_id"),
        ({"final_output_stage_ids": [9]}, "final_output_stage_ids"),
        ({"final_output_stage_ids": []}, "final_output_stage_ids"),
        ({"final_stage_id": 1, "final_output_stage_ids": [2]}, "final_output_stage_ids"),
        ({"final_stage_id": 1, "modalities": ["text"]}, "modalities"),
        ({"modalities": "text"}, "modalities"),
    ],
)
def test_argument_is_refused_by_name_when_it_would_have_no_effect(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        made(**arguments)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"priority": 1.5}, r"Expected `int`, got `float` - at `\$.priority`"),
        ({"deadline": "3"}, r"Expected `float \| null`, got `str` - at `\$.deadline`"),
        ({"trace_headers": {"traceparent": 5}}, "Expected `str`, got `int`"),
        ({"sampling_params_list": [{"tokens": object()}, None, None, None]}, "Encoding objects of type object"),
    ],
)
def test_argument_is_refused_when_its_type_is_wrong(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        made(**arguments)


@pytest.mark.parametrize("priority", [-1, 1])
def test_priority_is_refused_when_nothing_goes_by_it(priority: int) -> None:
    with pytest.raises(InvalidRequest, match="priority has no effect"):
        validate(PLAIN, made(PLAIN, priority=priority))


def test_final_stages_are_those_that_the_last_one_needs() -> None:
    assert made(final_stage_id=0).modalities == ("text",)
    assert made(final_stage_id=1).modalities == ("text", "image")
    assert made(final_stage_id=1, final_output_stage_ids=[1]).modalities == ("image",)
    assert made(final_output_stage_ids=[2, 0]).modalities == ("text", "audio")


def test_final_stage_is_refused_when_another_delivers_the_same_modality() -> None:
    with pytest.raises(InvalidRequest, match="stage 2 delivers the same modality"):
        made(PLAIN, final_stage_id=1)


def test_sampling_parameters_go_to_the_stage_at_their_place() -> None:
    params = made(sampling_params_list=[{"tokens": 4}, None, {}, Params(temperature=0.5)]).sampling_params
    assert params == {"s0": {"tokens": 4}, "s2": {}, "llm": {"temperature": 0.5, "max_tokens": 16}}


def test_sampling_parameter_goes_along_to_be_refused_when_stages_do_not_take_it() -> None:
    params = made(sampling_params_list=[None, None, None, Params(watermarking="x")]).sampling_params
    assert params["llm"]["watermarking"] == "x"


def test_negative_prompt_of_a_mapping_is_for_the_stages_that_paint() -> None:
    """parity: prompts of vLLM-Omni with a negative one."""
    spec = load_pipeline("omni-tiny")
    prompt = {"prompt": "a cat", "negative_prompt": "dogs"}
    assert make_request(spec, prompt) == Request(prompt="a cat", sampling_params={"dit": {"negative_prompt": "dogs"}})
    made = make_request(spec, prompt, sampling_params_list=[{"max_tokens": 3}, {"seed": 1}, None, None, None])
    assert made.sampling_params == {"thinker": {"max_tokens": 3}, "dit": {"seed": 1, "negative_prompt": "dogs"}}
    assert make_request(spec, {"prompt": "a cat", "negative_prompt": None}) == Request(prompt="a cat")
    with pytest.raises(InvalidRequest, match="no stage paints: the engines are vllm") as refused:
        make_request(load_pipeline("qwen3"), prompt)
    assert refused.value.param == "negative_prompt"
