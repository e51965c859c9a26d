"""The shipped pipelines: they are valid, say what they need, and their processors make what the stages take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from omnibus.errors import EmptyPrompt, EngineError, EngineRejected, InvalidRequest
from omnibus.frontdoor.stage_params import stage_params
from omnibus.pipeline.loading import load_pipeline, presets
from omnibus.presets import companions
from omnibus.presets import input_processors as processors
from omnibus.wire.request import Message, Request
from omnibus.workers.engines.protocol import EngineInput, StageInput
from omnibus.workers.object_loading import load_object

pytestmark = pytest.mark.unit

TEMPLATE = processors.QWEN_IMAGE_TEMPLATE
OF_REAL_MODELS = tuple(name for name in presets() if not name.startswith("omni-tiny"))
RUN_ON_THEIR_WEIGHTS = ("minilm", "smollm2")


def stage_input(prompt: str = "a cat", **sources: Mapping[str, Any]) -> StageInput:
    return StageInput(rid="r", request=Request(prompt=prompt), sources=sources)


def test_companions_of_sources_have_their_outputs_when_a_stage_goes_on_with_a_bundle() -> None:
    given = replace(stage_input(prefill={"kv": 1}, other={"a": 3}), companions={"prefill": {"negative": {"kv": 2}}})

    made = companions.of_sources(given)

    assert {role: (one.sources, one.companions) for role, one in made.items()} == {
        "negative": ({"prefill": {"kv": 2}, "other": {"a": 3}}, {})
    }
    assert companions.of_sources(stage_input(prefill={"kv": 1})) == {}


def test_presets_cover_the_kinds_of_pipeline_that_people_run() -> None:
    kinds = {name: tuple(stage.engine for stage in load_pipeline(name).stages) for name in OF_REAL_MODELS}
    assert kinds == {
        "flux": ("diffusers",),
        "llasa": ("vllm", "transformers"),
        "minilm": ("vllm", "python"),
        "qwen2-5-omni": ("vllm", "python", "python"),
        "qwen3-omni": ("vllm", "python", "python"),
        "qwen-image-encoder": ("vllm", "diffusers"),
        "qwen-image-rewritten": ("vllm", "diffusers"),
        "qwen3": ("vllm",),
        "smollm2": ("vllm",),
        "stable-diffusion-3": ("diffusers",),
    }


@pytest.mark.parametrize("name", OF_REAL_MODELS)
def test_preset_says_what_memory_it_needs_and_whether_its_weights_were_run(name: str) -> None:
    comment = presets()[name].read_text().split("\nname:")[0]
    assert "GPU memory:" in comment
    said = " ".join(comment.replace("\n#", " ").split())
    assert ("not run on these weights" in said) == (name not in RUN_ON_THEIR_WEIGHTS)


@pytest.mark.parametrize("name", OF_REAL_MODELS)
def test_processors_of_preset_can_be_imported(name: str) -> None:
    for stage in load_pipeline(name).stages:
        for field in ("input_processor", "prompt_expand"):
            if (function := getattr(stage, field)) is not None:
                assert callable(load_object(function, field))


def test_stage_that_only_encodes_gets_no_parameters() -> None:
    spec = load_pipeline("qwen-image-encoder")
    given = stage_params(spec, None, text={"temperature": 1.0}, image={"width": 512}, seed=3)
    assert given == {"painter": {"width": 512, "seed": 3}}
    with pytest.raises(InvalidRequest, match="temperature has no effect"):
        stage_params(spec, None, text={"temperature": 0.5})


@pytest.mark.parametrize("process", [processors.rewriter_input, processors.encoder_input, processors.llasa_input])
def test_empty_prompt_is_refused(process: Callable[[StageInput], EngineInput]) -> None:
    with pytest.raises(EmptyPrompt):
        process(stage_input(" \n"))


@pytest.mark.parametrize(
    ("written", "drawn"),
    [
        ("A tabby cat.", "A tabby cat."),
        ("<think>\nhm\n</think>\n\n A tabby cat.", "A tabby cat."),
        ("<think>\nnever done", "a cat"),
        ("  ", "a cat"),
    ],
)
def test_rewritten_prompt_is_the_answer_without_thoughts(written: str, drawn: str) -> None:
    assert processors.rewritten_prompt(stage_input(rewriter={"text": written})).text == drawn


def test_encoded_prompt_begins_after_the_template() -> None:
    states = np.arange(40 * 2, dtype=np.float32).reshape(40, 2)
    made = processors.encoded_prompt(stage_input(encoder={"last_hidden_state": states}))
    assert made.values["prompt_embeds"].tolist() == states[34:].tolist()


def test_negative_prompt_is_encoded_beside_each_prompt_and_may_be_blank() -> None:
    bundle = companions.negative_prompt_or_blank(stage_input())
    assert processors.encoder_input(replace(bundle["negative"], role="negative")).text == TEMPLATE.format(" ")
    asked = Request(prompt="a cat", sampling_params={"painter": {"negative_prompt": "dogs"}})
    bundle = companions.negative_prompt_or_blank(StageInput(rid="r", request=asked))
    assert processors.encoder_input(replace(bundle["negative"], role="negative")).text == TEMPLATE.format("dogs")
    states = np.arange(40 * 2, dtype=np.float32).reshape(40, 2)
    given = replace(
        stage_input(encoder={"last_hidden_state": states}),
        companions={"encoder": {"negative": {"last_hidden_state": -states}}},
    )
    assert processors.encoded_prompt(given).values["negative_prompt_embeds"].tolist() == (-states[34:]).tolist()


def test_encoded_prompt_fails_when_nothing_follows_the_template() -> None:
    with pytest.raises(EngineError, match="T > 34"):
        processors.encoded_prompt(stage_input(encoder={"last_hidden_state": np.zeros((34, 2))}))


def test_llasa_is_asked_to_go_on_with_speech() -> None:
    messages = processors.llasa_input(stage_input("hello")).messages
    assert messages == (
        Message(role="user", content=processors.LLASA_TASK.format("hello")),
        Message(role="assistant", content="<|SPEECH_GENERATION_START|>"),
    )


def test_speech_codes_are_read_from_the_text_in_order() -> None:
    made = processors.speech_codes(stage_input(llasa={"text": "<|s_7|><|s_65535|> um <|s_7|>"}))
    assert made.values["codes"].tolist() == [7, 65535, 7]


def test_silent_answer_is_refused() -> None:
    with pytest.raises(EngineRejected, match="no speech token"):
        processors.speech_codes(stage_input(llasa={"text": "I would rather not."}))


def test_speech_token_outside_the_codebook_is_a_failure_of_the_engine() -> None:
    with pytest.raises(EngineError, match="65536"):
        processors.speech_codes(stage_input(llasa={"text": "<|s_65536|>"}))


def test_output_that_is_missing_is_named() -> None:
    with pytest.raises(EngineError, match="'rewriter' left no output 'text'"):
        processors.rewritten_prompt(stage_input(rewriter={}))


# Companions


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"dit": {"negative_prompt": "a cross"}, "thinker": {"top_k": 1}}, "a cross"),
        (
            {"1": {"negative_prompt": "a cross"}, "dit": {"negative_prompt": "a cross"}, "x": {"negative_prompt": " "}},
            "a cross",
        ),
        ({"dit": {"negative_prompt": " "}}, None),
        ({"dit": {"negative_prompt": None}}, None),
        ({"dit": {"n": 2}}, None),
        ({}, None),
    ],
)
def test_negative_prompt_is_a_companion_where_there_is_one(params: dict[str, dict[str, Any]], text: str | None) -> None:
    chat = (Message(role="user", content="a cat"),)
    request = Request(messages=chat, sampling_params=params, cache_salt="mine", mm_processor_kwargs={"a": 1})
    made = companions.negative_prompt(StageInput(rid="r", request=request))
    wanted = Request(prompt=text, sampling_params=params, cache_salt="mine")
    assert made == ({} if text is None else {"negative": StageInput(rid="r", request=wanted)})


@pytest.mark.parametrize("params", [{"a": "x", "b": "y"}, {"a": ["x"]}, {"a": 5, "b": "x"}])
def test_negative_prompt_is_refused_when_it_is_not_one_text(params: dict[str, Any]) -> None:
    request = Request(prompt="a cat", sampling_params={name: {"negative_prompt": one} for name, one in params.items()})
    with pytest.raises(InvalidRequest, match="one text"):
        companions.negative_prompt(StageInput(rid="r", request=request))


@pytest.mark.parametrize(
    ("stages", "text"),
    [({"thinker", "0", "dit", "1"}, "a cross"), ({"thinker", "0", "talker", "2"}, None)],
    ids=["it paints", "it speaks"],
)
@pytest.mark.parametrize("ref", ["dit", "1"])
def test_negative_prompt_is_computed_only_for_a_request_that_paints(
    stages: set[str], text: str | None, ref: str
) -> None:
    request = Request(prompt="a cat", sampling_params={ref: {"negative_prompt": "a cross"}})
    given = StageInput(rid="r", request=request, stages=stages)
    assert [one.request.prompt for one in companions.negative_prompt(given).values()] == ([text] if text else [])
    (always,) = companions.negative_prompt_or_blank(given).values()
    assert always.request.prompt == (text or " ")
