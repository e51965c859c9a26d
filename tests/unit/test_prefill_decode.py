"""Two stages that share a generation: what their roles ask of a pipeline and of vLLM, and what KV fits into a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnibus.errors import PipelineError
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.loading import load_pipeline, parse_pipeline
from omnibus.pipeline.spec import StageSpec
from omnibus.requests.request_checks import validate
from omnibus.wire.request import AudioPart, ImagePart, Message, Part, Request, TextPart
from omnibus.workers.engines.vllm.arguments import sort_arguments
from omnibus.workers.engines.vllm.kv_handover import KvFiles, RemoteKv, engine_args, handover, misfit, stored_bytes

pytestmark = pytest.mark.unit

PIPELINE = """
name: halves
stages:
- {{stage_id: 0, name: prefill, engine: vllm, model: m, {prefill} engine_args: {{role: prefill, hidden_states: [0]}}}}
- {{stage_id: 1, name: decode, engine: vllm, model: {model}, input_sources: [{sources}], final_output: true,
   final_output_type: text, engine_args: {{role: decode, hidden_states: [{layers}]}}}}
- {{stage_id: 2, name: other, engine: vllm, model: m, input_sources: [0], final_output: true, final_output_type: text}}
"""
LAYERS = {"a": [32, 100, "torch.float32", [1, 2, 32, 4], ""], "b": [16, 60, "torch.float32", [1, 2, 16, 4], "vec"]}


def pipeline(prefill: str = "", model: str = "m", sources: str = "0", layers: str = "0") -> str:
    return PIPELINE.format(prefill=prefill, model=model, sources=sources, layers=layers)


def arguments(**given: Any) -> Any:
    return sort_arguments(StageSpec(stage_id=0, name="llm", engine="vllm", model="m", engine_args=given))


def kv(tokens: int, **changed: Any) -> dict[str, Any]:
    data = np.zeros(stored_bytes(LAYERS, tokens), np.uint8)
    return {"token_ids": list(range(tokens)), "layers": LAYERS, "data": data, **changed}


@pytest.mark.parametrize("part", [ImagePart(data=b"x"), AudioPart(data=b"x")])
def test_files_are_taken_where_a_stage_hands_over_the_kv_of_a_prompt(part: Part) -> None:
    validate(
        parse_pipeline(pipeline()), Request(messages=(Message(role="user", content=(TextPart(text="look"), part)),))
    )


def test_pipeline_is_valid_when_both_halves_agree() -> None:
    assert parse_pipeline(pipeline()).stage("decode").input_sources == (0,)
    assert load_pipeline("omni-tiny-pd").stage("thinker").input_sources == (5,)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (pipeline(prefill="final_output: true, final_output_type: text,"), r"stages\[0\].final_output"),
        (pipeline(model="n"), r"stages\[1\].model"),
        (pipeline(sources="2"), r"stages\[1\].input_sources"),
        (pipeline(layers="1"), r"stages\[1\].engine_args.hidden_states"),
    ],
)
def test_pipeline_error_naming_the_field_when_halves_do_not_agree(text: str, field: str) -> None:
    with pytest.raises(PipelineError, match=field):
        parse_pipeline(text)


@pytest.mark.parametrize(
    "given",
    [
        {"role": "encode"},
        {"role": "prefill", "runner": "pooling"},
        {"role": "decode", "enable_prompt_embeds": True},
        {"role": "decode", "tensor_parallel_size": 2},
    ],
)
def test_pipeline_error_when_a_role_does_not_suit_the_engine(given: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="role"):
        arguments(**given)


@pytest.mark.parametrize(
    "given", [{"role": "prefill"}, {"runner": "pooling"}, {"pipeline_parallel_size": 2}, {"kv_cache_dtype": "fp8_e4m3"}]
)
def test_pipeline_error_when_keys_and_values_cannot_be_read_out(given: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="kv_cache"):
        arguments(kv_cache=[0], **given)


@pytest.mark.parametrize("given", [{"role": "prefill"}, {"role": "decode"}, {"runner": "pooling"}])
def test_pipeline_error_when_a_stage_that_does_not_read_and_write_is_interleaved(given: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="interleaved"):
        arguments(interleaved=True, **given)


def test_prefill_takes_no_parameters_of_callers() -> None:
    only_encodes = engine_kind("vllm").only_encodes
    assert (only_encodes({"role": "prefill"}), only_encodes({"role": "decode"})) == (True, False)


def test_connectors_stand_side_by_side_when_states_and_kv_are_handed_over() -> None:
    states = {"kv_connector": "States", "kv_role": "kv_producer"}
    config = engine_args(arguments(role="decode"), Path("/f"), states)["kv_transfer_config"]

    assert config["kv_connector"] == "MultiConnector"
    names = [one["kv_connector"] for one in config["kv_connector_extra_config"]["connectors"]]
    assert names == ["States", "KvFileConnector"]


def test_connector_of_the_pipeline_is_used_when_it_names_one() -> None:
    given = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
    asked = arguments(role="prefill", kv_transfer_config=given, tensor_parallel_size=2)

    assert engine_args(asked, Path("/f")) == {"kv_transfer_config": given}
    files = KvFiles(Path("/f"))
    assert isinstance(handover(asked, files), RemoteKv)
    assert handover(arguments(role="prefill"), files) is files
    assert engine_args(arguments(), Path("/f")) == {}


@pytest.mark.parametrize(("tokens", "nbytes"), [(1, 160), (16, 160), (17, 220), (32, 220), (33, 380)])
def test_kv_fills_whole_blocks(tokens: int, nbytes: int) -> None:
    assert stored_bytes(LAYERS, tokens) == nbytes


def test_kv_fits_when_it_is_of_the_prompt_or_of_its_beginning() -> None:
    assert misfit(kv(20), LAYERS, range(20)) is None
    assert misfit(kv(20), LAYERS, range(25)) is None


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, "no output `kv`"),
        ({"token_ids": []}, "no output `kv`"),
        (kv(20, layers={"a": LAYERS["a"]}), "has the layers a"),
        (kv(20, layers={**LAYERS, "b": [16, 60, "torch.bfloat16", [1, 2, 16, 4], "vec"]}), "torch.bfloat16"),
        (kv(20, layers={**LAYERS, "b": [16, 60, "torch.float32", [1, 2, 16, 4], "amx"]}), "packed for amx"),
        (kv(20, token_ids=list(range(1, 21))), "another prompt"),
        (kv(21), "another prompt"),
        (kv(20, data=np.zeros(9, np.uint8)), "take 220 bytes, not 9"),
        (kv(20, data=b""), "bytes"),
    ],
)
def test_misfit_is_named_when_kv_cannot_be_used(given: Any, fault: str) -> None:
    assert fault in (misfit(given, LAYERS, range(20)) or "")


async def test_remote_references_are_what_the_prefill_stage_gave() -> None:
    remote = RemoteKv()
    made = await remote.outputs([1, 2], {"remote_block_ids": [3], "do_remote_prefill": True})

    assert made["token_ids"] == [1, 2]
    assert await remote.loading("run", made, [1, 2]) == {"remote_block_ids": [3], "do_remote_prefill": True}
