"""Changes of single stages from a command line, checked like a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from omnibus.cli import cli
from omnibus.errors import PipelineError
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.overrides import apply_cli_tokenizer, lb_policies, override_locally, override_stages

pytestmark = pytest.mark.unit

SPEC = parse_pipeline("""\
name: over
stages:
  - {stage_id: 0, name: thinker, engine: vllm, slots: 8, engine_args: {dtype: float32, max_model_len: 64},
     final_output: true, final_output_type: text}
  - {stage_id: 1, name: dit, engine: diffusers, input_sources: [0], final_output: true, final_output_type: image}
  - {stage_id: 2, name: talker, engine: vllm, input_sources: [0], engine_args: {skip_tokenizer_init: true},
     final_output: true, final_output_type: audio}
""")


@pytest.mark.parametrize(
    "text",
    [
        '{"1": {"slots": 2}}',
        "{dit: {slots: 2}}",
        "dit: {slots: 2}",
        '"1":\n  slots: 2',
        "1.slots=2",
        " dit . slots = 2",
    ],
)
def test_field_is_replaced_when_overridden_in_any_form(text: str) -> None:
    changed = override_stages(SPEC, [text])
    assert changed.stage("dit").slots == 2
    assert [stage for stage in changed.stages if stage.stage_id != 1] == [SPEC.stages[0], SPEC.stages[2]]


def test_engine_args_are_merged_key_by_key_when_overridden() -> None:
    changed = override_stages(SPEC, ['{"0": {"engine_args": {"dtype": "bfloat16"}}}', "0.engine_args.max_num_seqs=4"])
    assert changed.stages[0].engine_args == {"dtype": "bfloat16", "max_model_len": 64, "max_num_seqs": 4}


def test_later_override_wins_when_two_name_the_same_field() -> None:
    assert override_stages(SPEC, ["0.slots=2", '{"0": {"slots": 3}}']).stages[0].slots == 3


def test_value_may_hold_colons_and_equals_signs_when_assigned() -> None:
    changed = override_stages(SPEC, ["1.input_processor=some.module:function", '0.env.URL="http://x/?a=b"'])
    assert changed.stages[1].input_processor == "some.module:function"
    assert changed.stages[0].env == {"URL": "http://x/?a=b"}


def test_value_may_be_a_list_of_devices_when_assigned() -> None:
    assert override_stages(SPEC, ["1.devices=0,1"]).stages[1].devices == "0,1"
    with pytest.raises(PipelineError, match=r"stages\[1\].devices: expected str, got int; quote it"):
        override_stages(SPEC, ["1.devices=0"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"1": {"slotz": 2}}', "--stage-overrides:1: stages[1].slotz: unknown field; did you mean slots?"),
        ('{"0": {"gpu_memory_utilization": 0.8}}', "goes under engine_args"),
        ("1.slots=many", "stages[1].slots: expected int, got str"),
        ("1.slots=0", "stages[1].slots: must be from 1 to 4096, not 0"),
        ("1.engine=vlm", "did you mean vllm?"),
        ("1.slots", "'1.slots' is not of the form STAGE.FIELD=VALUE"),
        ("slots=2", "is not of the form STAGE.FIELD=VALUE"),
        ("7.slots=2", "has no stage '7'; it has 0 (thinker), 1 (dit), 2 (talker)"),
        ('{"1": 2}', "stage 1: must be a mapping of fields, not 2"),
        ('{"1": {"slots": 2}', "not valid YAML"),
        ('{"1": {"stage_id": 4}}', "its stage_id cannot be changed"),
        ("1.input_sources=[1]", "cannot be its own input"),
        ('{1: {"slots": 2}}', "quote it"),
    ],
)
def test_error_names_the_field_when_an_override_is_wrong(text: str, says: str) -> None:
    with pytest.raises(PipelineError) as caught:
        override_stages(SPEC, [text])
    assert says in caught.value.message
    assert caught.value.file == "--stage-overrides"


@pytest.mark.parametrize("text", ["1.slots=4", "1.engine_args.dtype=float32", "1.devices='2,3'", '1.env.A="1"'])
def test_replicas_differ_in_what_concerns_nobody_else_when_a_worker_overrides(text: str) -> None:
    assert override_locally(SPEC, 1, [text]).stages[1] != SPEC.stages[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [("0.slots=4", "only stage 1 runs here, not stage 0"), ("1.lb_policy=random", "lb_policy: others rely on it")],
)
def test_error_says_why_when_a_worker_overrides_what_others_rely_on(text: str, says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        override_locally(SPEC, 1, [text])


def test_lb_policy_is_a_stages_own_or_everybodys_when_given() -> None:
    flags = ["1=least-queue-length", "round-robin"]
    policies = [stage.lb_policy for stage in override_stages(SPEC, lb_policies(SPEC, flags), "--lb-policy").stages]
    assert policies == ["round-robin", "least-queue-length", "round-robin"]


@pytest.mark.parametrize(
    ("flag", "says"), [("fastest", "'fastest' is not one of broker, random"), ("9=random", "no stage '9'")]
)
def test_error_names_the_flag_when_a_policy_is_wrong(flag: str, says: str) -> None:
    with pytest.raises(PipelineError, match=r"--lb-policy") as caught:
        override_stages(SPEC, lb_policies(SPEC, [flag]), "--lb-policy")
    assert says in caught.value.message


def test_tokenizer_goes_to_llm_stages_that_name_none_when_given() -> None:
    """parity: apply_cli_tokenizer."""
    applied = apply_cli_tokenizer(SPEC, "some/tokenizer")
    assert [stage.engine_args.get("tokenizer") for stage in applied.stages] == ["some/tokenizer", None, None]
    own = override_stages(SPEC, ["0.engine_args.tokenizer=its/own"])
    assert apply_cli_tokenizer(own, "some/tokenizer") == own


def test_show_draws_what_was_merged_when_stages_are_overridden(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base_config: omni-tiny\nname: mine\nplatforms: {npu: {stages: [{stage_id: 3, slots: 99}]}}\n")
    words = ["pipeline", "show", str(file), "--platform", "npu", "--stage-overrides", "dit.slots=5"]
    drawn = CliRunner().invoke(cli, words).output
    assert "1 replica × 5 slots   ⇒ image" in drawn
    assert "1 replica × 99 slots   ⇒ audio" in drawn
    written = CliRunner().invoke(cli, [*words, "--yaml"]).output
    assert parse_pipeline(written).stage("dit").slots == 5
