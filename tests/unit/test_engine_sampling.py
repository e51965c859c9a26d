"""Sampling parameters and arguments of vLLM, checked without any engine."""

from __future__ import annotations

from typing import Any

import pytest

from omnibus.errors import ContextExceeded, EngineRejected, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.vllm.arguments import sort_arguments, with_spare_slot
from omnibus.workers.engines.vllm.sampling_params import check_sampling, continues, fit_context, rejected

pytestmark = pytest.mark.unit


def test_values_pass_when_they_are_right() -> None:
    given = {"temperature": 1, "stop": ["a"], "logit_bias": {"3": 1.5}, "seed": None, "n": 1}

    assert check_sampling(given) == {"temperature": 1.0, "stop": ["a"], "logit_bias": {3: 1.5}, "seed": None, "n": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", "2"),
        ("structured_outputs", "json"),
        ("top_k", 1.5),
        ("stop", [1]),
        ("temperature", float("nan")),
        ("logit_bias", {"3": float("inf")}),
        ("ignore_eos", "yes"),
        ("output_kind", 1),
        ("_eos_token_id", 3),
    ],
)
def test_rejected_naming_the_field_when_a_value_is_wrong(name: str, value: object) -> None:
    with pytest.raises(EngineRejected) as caught:
        check_sampling({name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("given", "fitted"),
    [
        ({}, {"max_tokens": 90}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 500, "min_tokens": 400}, {"max_tokens": 90, "min_tokens": 90}),
        ({"max_tokens": 5, "min_tokens": 6}, {"max_tokens": 5, "min_tokens": 6}),
    ],
)
def test_tokens_are_clamped_to_the_context(given: dict[str, Any], fitted: dict[str, Any]) -> None:
    assert fit_context(given, 10, 100) == fitted


def test_rejected_when_the_prompt_fills_the_context() -> None:
    with pytest.raises(ContextExceeded, match="100 tokens") as caught:
        fit_context({}, 100, 100)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("sampling", [{"min_p": 0.1}, {"logit_bias": {"5": 1.0}}])
def test_rejected_when_vllm_would_not_apply_it_beside_hidden_states(sampling: dict[str, Any]) -> None:
    check_sampling(sampling)
    check_sampling({"min_p": 0.0, "logit_bias": {}}, extracts=True)
    with pytest.raises(EngineRejected, match="hidden states") as caught:
        check_sampling(sampling, extracts=True)
    assert caught.value.param == next(iter(sampling))


def test_field_is_found_in_the_wording_when_an_error_names_none() -> None:
    assert rejected(ValueError("min_tokens must be at most max_tokens=3")).param == "min_tokens"
    assert rejected(ValueError("n must be 1 when using greedy sampling, got 2.")).param == "n"
    assert rejected(ValueError("something else")).param is None
    assert rejected(ValueError("something else"), "mm_processor_kwargs").param == "mm_processor_kwargs"


def stage(**engine_args: Any) -> StageSpec:
    return StageSpec(stage_id=0, name="llm", engine="vllm", model="m", engine_args=engine_args)


def test_our_keys_are_taken_out_when_arguments_are_sorted() -> None:
    sorted_ = sort_arguments(stage(hidden_states=[0, 2], lora_modules={"a": "b"}, skip_tokenizer_init=True, seed=1))

    assert sorted_.hidden_states == (0, 2)
    assert sorted_.skip_tokenizer
    assert sorted_.engine == {"skip_tokenizer_init": True, "seed": 1, "enable_lora": True}


@pytest.mark.parametrize(
    ("given", "adapters", "slots"), [({}, 2, 3), ({"max_loras": 2}, 2, 3), ({"max_loras": 8}, 2, 9), ({}, 0, 2)]
)
def test_a_slot_stays_empty_when_adapters_are_served_on_cpu(given: dict[str, Any], adapters: int, slots: int) -> None:
    enabled = {"enable_lora": True, **given}
    assert with_spare_slot(enabled, adapters) == {**enabled, "max_loras": slots}
    assert with_spare_slot(given, 0) == given


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"hidden_states": "all"}, "hidden_states"),
        ({"lora_modules": ["a"]}, "lora_modules"),
        ({"hidden_states": [0], "speculative_config": {}}, "speculative_config"),
        ({"hidden_states": [0], "enable_prompt_embeds": True}, "enable_prompt_embeds"),
        ({"hidden_states": [0], "runner": "pooling"}, "runner"),
    ],
)
def test_pipeline_error_naming_the_field_when_arguments_clash(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(PipelineError, match=field):
        sort_arguments(stage(**arguments))


@pytest.mark.parametrize(
    ("sampling", "goes_on"),
    [
        ({"temperature": 0.0}, True),
        ({"temperature": 0.0, "seed": 3}, True),
        ({"temperature": 0.0, "repetition_penalty": 1.2, "min_tokens": 5, "stop": ["a b"]}, True),
        ({"temperature": 0.0, "presence_penalty": 0.5}, False),
        ({"temperature": 0.0, "frequency_penalty": -0.5}, False),
        ({"temperature": 0.0, "presence_penalty": 0.0}, True),
        ({"temperature": 0.0, "bad_words": ["a b"]}, False),
        ({"temperature": 0.0, "extra_args": {"x": 1}}, False),
        ({"temperature": 0.7, "seed": 3}, False),
        ({"seed": 0}, False),
        ({}, True),
        ({"temperature": 0.7, "presence_penalty": 0.5}, True),
    ],
)
def test_text_goes_on_after_a_death_unless_it_would_change_or_can_be_made_again(
    sampling: dict[str, Any], goes_on: bool
) -> None:
    assert continues(sampling) is goes_on
