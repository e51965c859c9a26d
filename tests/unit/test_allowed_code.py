"""Code is loaded from where it was named to this command; a specification from the broker names none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from omnibus.cli.root import load_settings
from omnibus.errors import CheckpointMissing, CodeNotAllowed, ConfigError
from omnibus.pipeline.allowed_code import AllowedCode, environment_of
from omnibus.pipeline.loading import load_pipeline, presets
from omnibus.pipeline.overrides import override_locally
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.workers.engines.checkpoints import resolve_model
from omnibus.workers.object_loading import load_object

pytestmark = pytest.mark.unit

HARMLESS = StageSpec(
    stage_id=0, name="s", engine="vllm", model="org/model",
    engine_args={
        "max_model_len": 256, "enforce_eager": True, "dtype": "float32", "hidden_states": [0, 2],
        "limit_mm_per_prompt": {"image": 0}, "trust_remote_code": False, "runner": "pooling",
    },
    env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
)  # fmt: skip

# What an attacker changes in a deployed stage, and what must be allowed for it.
ATTACKS: list[tuple[dict[str, Any], str]] = [
    ({"input_processor": "os:system"}, "os"),
    ({"input_processor": "a.b.c:d.e"}, "a.b.c"),
    ({"prompt_expand": "os:system"}, "os"),
    ({"input_processor": "omnibus.cli.root:run"}, "omnibus.cli.root"),
    ({"engine": "python", "model": "subprocess:Popen", "engine_args": {"args": ["sh"]}}, "subprocess"),
    ({"engine": "diffusers", "engine_args": {"pipeline_class": "evil:Pipeline"}}, "evil"),
    ({"engine": "transformers", "engine_args": {"model_class": "evil.models:Model"}}, "evil.models"),
    ({"env": {"PYTHONPATH": "/tmp/evil"}}, "PYTHONPATH"),
    ({"env": {"LD_PRELOAD": "/tmp/evil.so"}}, "LD_PRELOAD"),
    ({"env": {"HOME": "/tmp/evil"}}, "HOME"),
    ({"env": {"OMP_TOOL_LIBRARIES": "/tmp/evil.so"}}, "OMP_TOOL_LIBRARIES"),
    ({"env": {"OMNIBUS_ALLOWED_MODULES": "os"}}, "OMNIBUS_ALLOWED_MODULES"),
    ({"env": {"HF_ENDPOINT": "http://evil"}}, "HF_ENDPOINT"),
    ({"env": {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}}, "VLLM_ALLOW_INSECURE_SERIALIZATION"),
    ({"engine_args": {"trust_remote_code": True}}, "trust_remote_code"),
    ({"engine_args": {"trust_remote_code": "yes"}}, "trust_remote_code"),
    ({"engine_args": {"mm_processor_kwargs": {"a": [{"trust_remote_code": True}]}}}, "trust_remote_code"),
    ({"engine": "transformers", "engine_args": {"method_kwargs": {"trust_remote_code": 1}}}, "trust_remote_code"),
    ({"engine_args": {"worker_cls": "evil.Worker"}}, "worker_cls"),
    ({"engine_args": {"worker_extension_cls": "evil.Extension"}}, "worker_extension_cls"),
    ({"engine_args": {"scheduler_cls": "evil.Scheduler"}}, "scheduler_cls"),
    ({"engine_args": {"distributed_executor_backend": "evil.Executor"}}, "distributed_executor_backend"),
    ({"engine_args": {"logits_processors": ["evil:Processor"]}}, "logits_processors"),
    ({"engine_args": {"reasoning_parser_plugin": "/tmp/evil.py"}}, "reasoning_parser_plugin"),
    ({"engine_args": {"model_class_overrides": {"A": "evil:A"}}}, "model_class_overrides"),
    ({"engine_args": {"kv_transfer_config": {"kv_connector_module_path": "evil"}}}, "kv_transfer_config"),
    ({"engine_args": {"speculative_config": {"model": "x"}}}, "speculative_config"),
    ({"engine_args": {"an_argument_of_tomorrow": "evil.Class"}}, "an_argument_of_tomorrow"),
]  # fmt: skip


def _attacked(changes: dict[str, Any]) -> StageSpec:
    defaults = {"engine_args": {}} if "engine" in changes else {}
    return msgspec.structs.replace(HARMLESS, **{**defaults, **changes})


def _pipeline(*stages: StageSpec) -> PipelineSpec:
    return PipelineSpec(name="p", stages=stages)


def test_stage_without_code_is_allowed() -> None:
    AllowedCode().check(HARMLESS)


@pytest.mark.parametrize("name", presets())
def test_shipped_pipelines_need_no_permission(name: str) -> None:
    for stage in load_pipeline(name).stages:
        AllowedCode().check(stage)


@pytest.mark.parametrize(("changes", "name"), ATTACKS)
def test_stage_is_refused_with_the_way_out_when_only_the_broker_names_code(changes: dict[str, Any], name: str) -> None:
    stage = _attacked(changes)
    with pytest.raises(CodeNotAllowed) as refused:
        AllowedCode(frozenset({"somewhere.else"})).check(stage)

    assert isinstance(refused.value, ConfigError)
    assert refused.value.code == "code_not_allowed"
    assert f"--allow-module {name} or OMNIBUS_ALLOWED_MODULES" in refused.value.message
    AllowedCode(frozenset({name})).check(stage)


@pytest.mark.parametrize(("changes", "name"), ATTACKS)
def test_stage_is_allowed_when_the_given_file_names_the_same(changes: dict[str, Any], name: str) -> None:
    stage = _attacked(changes)
    allowed = AllowedCode.of(_pipeline(stage))
    allowed.check(stage)
    with pytest.raises(CodeNotAllowed):
        AllowedCode.of(_pipeline(HARMLESS)).check(stage)


def test_other_value_of_a_setting_is_refused_when_the_file_has_set_it() -> None:
    allowed = AllowedCode.of(
        _pipeline(_attacked({"env": {"PYTHONPATH": "/mine"}, "engine_args": {"trust_remote_code": True}}))
    )
    allowed.check(_attacked({"env": {"PYTHONPATH": "/mine"}}))
    with pytest.raises(CodeNotAllowed):
        allowed.check(_attacked({"env": {"PYTHONPATH": "/evil"}}))
    with pytest.raises(CodeNotAllowed, match="trust_remote_code"):
        allowed.check(_attacked({"model": "evil/model", "engine_args": {"trust_remote_code": True}}))


def test_module_is_allowed_when_a_package_around_it_is() -> None:
    allowed = AllowedCode(frozenset({"my_stages"}))
    allowed.check(_attacked({"input_processor": "my_stages.text.upper:shout"}))
    with pytest.raises(CodeNotAllowed):
        allowed.check(_attacked({"input_processor": "my_stages_not:shout"}))


def test_code_of_an_override_is_allowed_and_no_other() -> None:
    deployed = _pipeline(
        msgspec.structs.replace(
            HARMLESS, engine="python", model="evil:run", engine_args={}, final_output=True, final_output_type="text"
        )
    )
    changed = override_locally(deployed, 0, ["s.model=mine:run"])
    allowed = AllowedCode().with_changes(deployed, changed)
    allowed.check(changed.stages[0])
    with pytest.raises(CodeNotAllowed):
        allowed.check(deployed.stages[0])


def test_child_process_is_allowed_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = AllowedCode(frozenset({"a.b", 'kv_transfer_config={"x":1,"y":[2]}', "PATH=/a,b"}))
    for name, value in environment_of(allowed).items():
        monkeypatch.setenv(name, value)
    assert frozenset(load_settings().allowed_modules) == allowed.names
    monkeypatch.setenv("OMNIBUS_ALLOWED_MODULES", "one, two.three")
    assert load_settings().allowed_modules == ("one", "two.three")


@pytest.mark.parametrize(
    "reference", ["json.decoder:re.compile", "tests.unit.test_allowed_code:subprocess.Popen", "json:codecs.open"]
)
def test_object_is_refused_when_a_module_has_only_imported_it(reference: str) -> None:
    with pytest.raises(ConfigError, match="it is defined in"):
        load_object(reference, "model")


def test_no_package_is_imported_when_a_model_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "evil" / "inside").mkdir(parents=True)
    (tmp_path / "evil" / "__init__.py").write_text("raise SystemExit(9)")
    code = "import sys; from omnibus.workers.engines.checkpoints import resolve_model as r; print(r(sys.argv[1]))"
    words = [sys.executable, "-c", code, "package:evil.inside/x/.."]
    found = subprocess.run(words, env={"PYTHONPATH": f"{tmp_path}:."}, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert "there is no checkpoint at" in found.stderr
    with pytest.raises(CheckpointMissing, match="there is no package '__main__'"):
        resolve_model("package:__main__/x")
