"""What a request asks for is read by a stage that would run, or refused by name; its bound counts everything but files."""

from __future__ import annotations

from typing import Any

import pytest

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.pipeline.spec import LaneName, PipelineSpec, StageSpec
from omnibus.requests.request_checks import validate
from omnibus.wire.request import AudioPart, FunctionCall, ImagePart, Message, Request, TextPart, ToolCall

pytestmark = pytest.mark.unit
BOUND = 1000
LONG = "x" * (BOUND + 1)
CALL = ToolCall(id="c", function=FunctionCall(name="f", arguments="{}"))


def pipeline(engine: str, lanes: tuple[LaneName, ...] = ("interactive",), **stage: Any) -> PipelineSpec:
    only = StageSpec(stage_id=0, name="say", engine=engine, final_output=True, final_output_type="text", **stage)
    return PipelineSpec(name="p", lanes=lanes, stages=(only,), max_prompt_bytes=BOUND)


def behind(engine: str, **stage: Any) -> PipelineSpec:
    """A stage of this engine behind one that takes no files."""
    first = StageSpec(stage_id=0, name="first", engine="transformers")
    last = StageSpec(
        stage_id=1,
        name="last",
        engine=engine,
        input_sources=(0,),
        final_output=True,
        final_output_type="image",
        **stage,
    )
    return PipelineSpec(name="p", stages=(first, last), max_prompt_bytes=BOUND)


def user(*content: Any) -> Message:
    return Message(role="user", content=content)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request(prompt=LONG), "prompt"),
        (Request(prompt="é" * (BOUND // 2 + 1)), "prompt"),
        (Request(prompt=tuple(range(BOUND // 4 + 1))), "prompt"),
        (Request(messages=(user(TextPart(text=LONG)),)), "messages"),
        (Request(messages=(Message(role="assistant", content=LONG), user(TextPart(text="x")))), "messages"),
        (Request(messages=(Message(role="system", content=LONG), user(TextPart(text="x")))), "messages"),
        (Request(messages=(Message(role=LONG, content="x"),)), "messages"),
        (Request(messages=(Message(role="user", content="x", name=LONG),)), "messages"),
        (Request(messages=(user(TextPart(text="x"), ImagePart(data=b"x", media_type=LONG)),)), "messages"),
        (Request(prompt="x", cache_salt=LONG), "cache_salt"),
        (Request(prompt="x", sampling_params={"say": {"stop": [LONG]}}), "sampling_params"),
        (Request(prompt="x", sampling_params={"say": {LONG: 1}}), "sampling_params"),
        (Request(prompt="x", sampling_params={"say": {"stop_token_ids": list(range(BOUND))}}), "sampling_params"),
        (Request(prompt="x", mm_processor_kwargs={"deep": {"er": [LONG]}}), "mm_processor_kwargs"),
    ],
)
def test_too_large_when_any_part_of_a_request_is(request_: Request, param: str) -> None:
    with pytest.raises(RequestTooLarge) as refused:
        validate(pipeline("vllm"), request_)
    assert refused.value.param == param


def test_too_large_when_the_calls_of_a_turn_are() -> None:
    call = ToolCall(id="c", function=FunctionCall(name="f", arguments=LONG))
    with pytest.raises(RequestTooLarge):
        validate(pipeline("vllm"), Request(messages=(Message(role="assistant", tool_calls=(call,)),)))


def test_files_do_not_count_and_a_prompt_may_fill_the_bound() -> None:
    validate(pipeline("vllm"), Request(prompt="x" * BOUND))
    validate(pipeline("vllm"), Request(messages=(user(AudioPart(data=bytes(10 * BOUND))),)))


@pytest.mark.parametrize("spec", [pipeline("transformers"), behind("diffusers")])
def test_media_are_refused_when_no_stage_sees_them(spec: PipelineSpec) -> None:
    request = Request(messages=(Message(role="system", content="x"), user(TextPart(text="x"), ImagePart(data=b"x"))))
    with pytest.raises(InvalidRequest, match="no stage takes image") as refused:
        validate(spec, request)
    assert refused.value.param == "messages[1].content[1].image"


@pytest.mark.parametrize(
    "spec", [pipeline("vllm"), pipeline("diffusers"), behind("python"), behind("diffusers", input_processor="a:b")]
)
def test_media_pass_when_a_stage_may_see_them(spec: PipelineSpec) -> None:
    validate(spec, Request(messages=(user(ImagePart(data=b"x")),)))


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        (Message(role="assistant", tool_calls=(CALL,)), "tool_calls"),
        (Message(role="tool", content="sunny", tool_call_id="c"), "tool_call_id"),
        (Message(role="user", content="x", name="ada"), "name"),
    ],
)
@pytest.mark.parametrize("engine", ["python", "sim", "diffusers"])
def test_calls_and_names_are_refused_when_no_stage_has_a_chat_template(turn: Message, field: str, engine: str) -> None:
    request = Request(messages=(user(TextPart(text="x")), turn))
    with pytest.raises(InvalidRequest, match="no stage has a chat template") as refused:
        validate(pipeline(engine), request)
    assert refused.value.param == f"messages[1].{field}"
    validate(pipeline("vllm"), request)
    validate(pipeline(engine, input_processor="a:b"), request)


@pytest.mark.parametrize("changes", [{"priority": 3}, {"priority": -1}, {"priority": -1, "lane": "batch"}])
def test_a_priority_is_refused_when_nothing_goes_by_it(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="priority has no effect") as refused:
        validate(pipeline("vllm", lanes=("interactive", "batch")), Request(prompt="x", **changes))
    assert refused.value.param == "priority"


def test_a_priority_passes_when_an_engine_or_a_lane_goes_by_it() -> None:
    validate(pipeline("vllm", engine_args={"scheduling_policy": "priority"}), Request(prompt="x", priority=-1))
    validate(pipeline("sim", lanes=("interactive", "batch")), Request(prompt="x", priority=1, lane="batch"))


def test_an_adapter_is_refused_when_no_stage_has_it() -> None:
    spec = pipeline("vllm", engine_args={"lora_modules": {"mine": "folder"}}, added_adapters={"added": "folder"})
    for known in ("mine", "added"):
        validate(spec, Request(prompt="x", lora=known))
    with pytest.raises(InvalidRequest, match="there are: added, mine") as refused:
        validate(spec, Request(prompt="x", lora="yours"))
    assert refused.value.param == "lora"
    with pytest.raises(InvalidRequest, match="there are: none"):
        validate(pipeline("python"), Request(prompt="x", lora="mine"))


def test_a_turn_with_calls_alone_is_not_empty() -> None:
    validate(pipeline("vllm"), Request(messages=(Message(role="assistant", tool_calls=(CALL,)),)))
