"""Pipeline files that expand, and values that nobody could deploy or serve: refused at once, with file, line and field."""

from __future__ import annotations

import datetime as dt
import math
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from omnibus.errors import PipelineError
from omnibus.pipeline.loading import load_pipeline, parse_pipeline
from omnibus.pipeline.overrides import override_stages
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.pipeline.validation import validate

pytestmark = pytest.mark.unit
STAGE = "stages:\n- {{stage_id: 0, name: s, engine: {engine}, final_output: true, final_output_type: text{more}}}\n"


def _text(more: str = "", engine: str = "python") -> str:
    return "name: p\n" + STAGE.format(engine=engine, more=f", {more}" if more else "")


def _bomb(levels: int, wide: str = "list") -> str:
    """Aliases of aliases, ten of each: 10^levels values in a few hundred bytes."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        inside = [f"k{number}: *l{level - 1}" if wide == "map" else f"*l{level - 1}" for number in range(10)]
        brackets = "{}" if wide == "map" else "[]"
        lines.append(f"l{level}: &l{level} {brackets[0]}{', '.join(inside)}{brackets[1]}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("wide", ["list", "map"])
def test_file_is_refused_at_once_when_its_aliases_expand(wide: str) -> None:
    started = time.process_time()
    with pytest.raises(PipelineError, match="more than 20000 values") as refused:
        parse_pipeline(_bomb(9, wide) + _text("engine_args: {x: *l8}"), "bomb.yaml")
    assert (refused.value.file, refused.value.line is not None) == ("bomb.yaml", True)
    assert time.process_time() - started < 10.0


def test_file_is_refused_when_its_base_expands(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(_bomb(9) + _text())
    (tmp_path / "own.yaml").write_text("base_config: base.yaml\nname: own\n")
    with pytest.raises(PipelineError, match=r"base\.yaml:\d+: .*more than 20000 values"):
        load_pipeline(tmp_path / "own.yaml")


def test_override_is_refused_when_it_expands() -> None:
    spec = parse_pipeline(_text())
    with pytest.raises(PipelineError, match="more than 20000 values"):
        override_stages(spec, ["{s: {engine_args: {" + _bomb(9).replace("\n", ", ") + "}}}"])


def test_file_is_refused_when_too_many_inherit(tmp_path: Path) -> None:
    (tmp_path / "f0.yaml").write_text(_text())
    for number in range(1, 40):
        (tmp_path / f"f{number}.yaml").write_text(f"base_config: f{number - 1}.yaml\n")
    with pytest.raises(PipelineError, match="more than 16 files inherit"):
        load_pipeline(tmp_path / "f39.yaml")
    assert load_pipeline(tmp_path / "f10.yaml").name == "p"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [" + "[" * 5000 + "]" * 5001, "nested too deep"),
        ("name: p\nx: " + "[" * 60 + "]" * 60, "nested deeper than 32 levels"),
        ("name: p\nx: &x [*x]", "nested deeper than 32 levels"),
        (f"name: p\n# {'x' * (1 << 20)}", "longer than 262144 characters"),
    ],
)
def test_file_is_refused_when_it_is_too_deep_or_too_long(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_pipeline(text)


def test_endless_file_is_refused() -> None:
    with pytest.raises(PipelineError, match="not YAML: a binary file"):
        load_pipeline(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2024-01-31", "must be text, a number, a list or a mapping, not a date; quote it"),
        ("2024-01-31 10:00:00", "not a datetime; quote it"),
        ("!!binary aGVsbG8=", "not a bytes; quote it"),
        ("[1, {a: 2024-01-31}]", "not a date; quote it"),
        ("18446744073709551616", "at most 64 bits"),
        ("-9223372036854775809", "at most 64 bits"),
        (f"1{'0' * 4000}", "at most 64 bits"),
        (r'"\ud83d"', "half a surrogate pair"),
        (r'{"\ud83d": 1}', "half a surrogate pair|must be text"),
        ("{1: 2}", "the key 1 must be text; quote it"),
        ("{2024-01-31: 2}", "the key .* must be text; quote it"),
        ("!!set {a, b}", "the tag 'tag:yaml.org,2002:set'"),
    ],
)
@pytest.mark.parametrize("field", ["engine_args", "default_sampling_params"])
def test_value_is_refused_with_its_place_when_it_cannot_be_deployed(field: str, value: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as refused:
        parse_pipeline(_text(f"\n   {field}: {{x: {value}}}"), "file.yaml")
    assert (refused.value.file, refused.value.line) == ("file.yaml", 4)
    assert (refused.value.field or "").startswith(f"stages[0].{field}.x")


@pytest.mark.parametrize(
    "more",
    [
        "slots: 1000000000000000000000000000000",
        "num_replicas: 99999999999999999999",
        "slots: 1e400",
        "devices: 2024-01-31",
    ],
)
def test_number_of_any_size_is_refused_without_a_traceback(more: str) -> None:
    with pytest.raises(PipelineError):
        parse_pipeline(_text(more))
    for field in ("deadline", "heartbeat_timeout", "max_attempts", "max_open_requests"):
        with pytest.raises(PipelineError, match=field):
            parse_pipeline(f"{field}: 1{'0' * 400}\n" + _text())


@pytest.mark.parametrize("value", [18446744073709551615, -(1 << 63), math.inf, "🙂", [[{}]], None])
def test_value_is_deployed_and_overridden_unchanged_when_it_can_be(value: Any) -> None:
    stage = StageSpec(
        stage_id=0, name="s", engine="python", engine_args={"x": value}, final_output=True, final_output_type="text"
    )
    spec = PipelineSpec(name="p", stages=(stage,))
    validate(spec)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=PipelineSpec) == spec
    assert override_stages(spec, ["s.slots=2"]).stages[0].engine_args == {"x": value}


@pytest.mark.parametrize("value", [dt.date(2024, 1, 31), {1, 2}, {1: 2}, 1 << 64, b"bytes", object()])
def test_specification_made_in_python_is_refused_when_it_cannot_be_deployed(value: object) -> None:
    stage = StageSpec(
        stage_id=0, name="s", engine="python", engine_args={"x": value}, final_output=True, final_output_type="text"
    )
    with pytest.raises(PipelineError, match=r"stages\[0\]\.engine_args\.x"):
        validate(PipelineSpec(name="p", stages=(stage,)))


def test_specification_is_refused_when_it_is_too_large() -> None:
    stages = "".join(
        f"- {{stage_id: {number}, name: s{number}, engine: sim, final_output: true, final_output_type: text}}\n"
        for number in range(300)
    )
    with pytest.raises(PipelineError, match="there are 300 stages; 256 may be"):
        parse_pipeline(f"name: p\nstages:\n{stages}")
    large = PipelineSpec(name="p", stages=parse_pipeline(_text()).stages * 1, edges=())
    stage = msgspec.structs.replace(large.stages[0], model="x" * (1 << 20))
    with pytest.raises(PipelineError, match="may be deployed"):
        validate(msgspec.structs.replace(large, stages=(stage,)))


@pytest.mark.parametrize(
    ("engine", "more", "message"),
    [
        ("vllm", 'devices: "0", engine_args: {tensor_parallel_size: 2}', "a replica takes 2 devices by its engine_args, and"),
        ("vllm", 'devices: "0,1,2", engine_args: {pipeline_parallel_size: 2, data_parallel_size: 2}', "takes 4 devices"),
        ("vllm", 'devices: "0", num_replicas: 0, engine_args: {tensor_parallel_size: 2}', "takes 2 devices"),
        ("vllm", 'devices: "0,1,2", num_replicas: 2, engine_args: {tensor_parallel_size: 2}', "3 devices for 2 replicas of 2"),
        ("vllm", 'devices: "0,0", engine_args: {tensor_parallel_size: 2}', "named twice"),
        ("sim", 'devices: "0;1"', "'0;1' is no device"),
        ("sim", 'devices: "0,"', "'' is no device"),
        ("sim", 'devices: "-1"', "'-1' is no device"),
        ("vllm", "engine_args: {tensor_parallel_size: two}", "must be at least 1, not 'two'"),
        ("vllm", "engine_args: {tensor_parallel_size: null}", "must be at least 1, not None"),
    ],
)  # fmt: skip
def test_file_is_refused_when_its_devices_cannot_hold_its_replicas(engine: str, more: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_pipeline(_text(more, engine))


@pytest.mark.parametrize("devices", ["0", "0,1", "GPU-8932f937-d72c, MIG-GPU-1/2/0", ""])
def test_devices_are_accepted_when_they_are_enough(devices: str) -> None:
    assert parse_pipeline(_text(f'devices: "{devices}"', "sim")).stages[0].devices == devices


def test_a_deployed_pipeline_names_only_fields_that_were_set_when_others_are_to_read_it() -> None:
    """A process of an earlier version refuses fields that it does not know: those that nobody set must not be there."""
    spec = parse_pipeline(_text("slots: 3, canary: {request: {prompt: hi}}"), "p.yaml")
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(spec))
    assert set(read) == {"name", "stages"}
    assert set(read["stages"][0]) == {
        "stage_id", "name", "engine", "slots", "canary", "final_output", "final_output_type",
    }  # fmt: skip
    assert msgspec.convert(read, PipelineSpec) == spec
