"""Pipeline files: what a good one becomes, and for every bad one the exact file, line and field."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from omnibus.errors import PipelineError
from omnibus.pipeline.loading import load_pipeline, parse_pipeline, presets
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import CanarySpec, PayloadRule, PipelineSpec

pytestmark = pytest.mark.unit

GOOD = """\
name: omni-test
lanes: [interactive, batch]
deadline: 5m
heartbeat_timeout: 1500ms
stages:
  - stage_id: 0
    name: thinker
    engine: vllm
    model: somewhere/thinker
    slots: 8
    env: {OMP_NUM_THREADS: "1"}
    engine_args: {max_model_len: 256}
    default_sampling_params: {temperature: 0.0}
    final_output: true
    final_output_type: text
  - stage_id: 1
    name: dit
    engine: diffusers
    input_sources: [0]
    input_processor: some.module:condition
    devices: "0,1"
    num_replicas: 2
    final_output: true
    final_output_type: image
edges:
  - source: 0
    target: 1
    forwarding: direct
    payload: object
"""


def test_every_field_is_read_when_the_file_is_good() -> None:
    spec = parse_pipeline(GOOD)

    assert (spec.name, spec.lanes, spec.deadline, spec.heartbeat_timeout) == (
        "omni-test",
        ("interactive", "batch"),
        300.0,
        1.5,
    )
    thinker, dit = spec.stages
    assert (thinker.model, thinker.slots, thinker.env) == ("somewhere/thinker", 8, {"OMP_NUM_THREADS": "1"})
    assert (thinker.engine_args, thinker.default_sampling_params) == ({"max_model_len": 256}, {"temperature": 0.0})
    assert (dit.input_sources, dit.input_processor, dit.devices) == ((0,), "some.module:condition", "0,1")
    assert spec.edge(0, 1).forwarding is Forwarding.DIRECT
    assert spec.edge(0, 1).payload is PayloadRule.OBJECT
    assert spec.modalities == ("text", "image")


def test_specification_is_unchanged_when_it_crosses_the_bucket() -> None:
    spec = parse_pipeline(GOOD)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=PipelineSpec) == spec


def test_stage_is_found_when_referred_to_by_id_name_or_digits() -> None:
    spec = parse_pipeline(GOOD)
    assert spec.stage(1) == spec.stage("dit") == spec.stage("1")


def test_stage_raises_with_the_known_ones_when_it_does_not_exist() -> None:
    with pytest.raises(PipelineError, match=r"no stage 'vae'; it has 0 \(thinker\), 1 \(dit\)"):
        parse_pipeline(GOOD).stage("vae")


def test_edge_has_the_defaults_when_the_file_sets_none() -> None:
    spec = parse_pipeline(GOOD.partition("edges:")[0])
    assert spec.edge(0, 1).forwarding is Forwarding.ORCHESTRATOR
    assert spec.edge(0, 1).payload is PayloadRule.AUTO


# (what is replaced in GOOD, by what, line, field, part of the message)
BAD_EDITS = [
    ("name: omni-test", "name: omni test", 1, "name", "does not match"),
    ("name: omni-test", f"name: {'x' * 65}", 1, "name", "does not match"),
    ("name: omni-test\n", "", 1, "name", "missing"),
    ("[interactive, batch]", "[interactive, bulk]", 2, "lanes[1]", "'bulk' is not one of interactive, batch"),
    ("[interactive, batch]", "[batch]", 2, "lanes", "must be"),
    ("[interactive, batch]", "[interactive, interactive]", 2, "lanes", "must be"),
    ("deadline: 5m", "deadline: soon", 3, "deadline", "'soon' is not a duration"),
    ("deadline: 5m", "deadline: 0", 3, "deadline", "must be from 0.1 to 604800 seconds, not 0"),
    ("deadline: 5m", "deadline: .nan", 3, "deadline", "must be from"),
    ("deadline: 5m", "deadline: 2000h", 3, "deadline", "must be from"),
    ("deadline: 5m", "deadline: [5]", 3, "deadline", "expected float, got array"),
    ("deadline: 5m", "deadlin: 5m", 3, "deadlin", "unknown field; did you mean deadline?"),
    ("deadline: 5m", "name: again", 3, "name", "repeated; first given on line 1"),
    ("deadline: 5m", "max_attempts: 0", 3, "max_attempts", "must be from 1"),
    ("deadline: 5m", "max_open_requests: -1", 3, "max_open_requests", "must be from 1"),
    ("deadline: 5m", "max_open_per_tenant: 0", 3, "max_open_per_tenant", "must be from 1"),
    ("deadline: 5m", "max_prompt_bytes: 0", 3, "max_prompt_bytes", "must be from 1"),
    ("heartbeat_timeout: 1500ms", "heartbeat_timeout: 500ms", 4, "heartbeat_timeout", "must be from 1 to 3600"),
    ("stage_id: 0", "stage_id: -1", 6, "stages[0].stage_id", "must be from 0"),
    ("stage_id: 0", 'stage_id: "0"', 6, "stages[0].stage_id", "expected int, got str"),
    ("    name: thinker\n", "", 6, "stages[0].name", "missing"),
    ("name: thinker", "name: think.er", 7, "stages[0].name", "does not match"),
    ("name: thinker", "name: 7", 7, "stages[0].name", "expected str, got int; quote it"),
    ("engine: vllm", "engine: vlm", 8, "stages[0].engine", "did you mean vllm?"),
    ("slots: 8", "slots: 0", 10, "stages[0].slots", "must be from 1 to 4096, not 0"),
    ("slots: 8", "slots: many", 10, "stages[0].slots", "expected int, got str"),
    ("slots: 8", "slotz: 8", 10, "stages[0].slotz", "unknown field; did you mean slots?"),
    ("slots: 8", "zzz: 8", 10, "stages[0].zzz", "unknown field"),
    ("slots: 8", "added_adapters: {a: 1}", 10, "stages[0].added_adapters.a", "expected str, got int; quote it"),
    ("slots: 8", "added_adapters: {a: /a}", 10, "stages[0].added_adapters", "takes no adapters while it runs"),
    ("slots: 8", "lb_policy: round_robin", 10, "stages[0].lb_policy", "did you mean round-robin?"),
    ('{OMP_NUM_THREADS: "1"}', "{OMP_NUM_THREADS: 1}", 11, "stages[0].env.OMP_NUM_THREADS", "quote it"),
    ('{OMP_NUM_THREADS: "1"}', '{"A=B": "1"}', 11, "stages[0].env.A=B", "cannot be an environment variable"),
    (
        "max_model_len: 256",
        "tensor_parallel_size: two",
        12,
        "stages[0].engine_args.tensor_parallel_size",
        "must be at least 1, not 'two'",
    ),
    ("    final_output_type: text\n", "", 14, "stages[0].final_output", "needs a final_output_type"),
    (
        "final_output_type: text",
        "final_output_type: txt",
        15,
        "stages[0].final_output_type",
        "did you mean text",
    ),
    ("final_output_type: text", "final_output_type: My Text", 15, "stages[0].final_output_type", "lower case"),
    ("final_output_type: text", "final_output_type: [text, text]", 15, "stages[0].final_output_type", "different ones"),
    ("final_output_type: text", "final_output_type: [text, My]", 15, "stages[0].final_output_type", "lower case"),
    ("    final_output: true\n    final_output_type: image", "", 16, "stages[1]", "nothing needs stage 'dit'"),
    ("    final_output: true\n    final_output_type: i", "    final_output_type: i", 23, None, "final_output: true"),
    ("stage_id: 1", "stage_id: 0", 16, "stages[1].stage_id", "stage id 0 is used twice"),
    ("name: dit", "name: thinker", 17, "stages[1].name", "stage name 'thinker' is used twice"),
    ("input_sources: [0]", "input_sources: [7]", 19, "stages[1].input_sources[0]", "stage 7 does not exist"),
    ("input_sources: [0]", "input_sources: [1]", 19, "stages[1].input_sources[0]", "cannot be its own input"),
    ("input_sources: [0]", "input_sources: [0, 0]", 19, "stages[1].input_sources[1]", "used twice"),
    ("input_sources: [0]", "input_sources: 0", 19, "stages[1].input_sources", "expected array, got int"),
    ("some.module:condition", "some.module", 20, "stages[1].input_processor", "module:function"),
    ("some.module:condition", '"../file.py:f"', 20, "stages[1].input_processor", "module:function"),
    ("input_processor: some.module:condition", "prompt_expand: a.b", 20, "stages[1].prompt_expand", "module:function"),
    (
        "input_processor: some.module:condition",
        "prompt_expand_func: a:b",
        20,
        "stages[1].prompt_expand_func",
        "did you mean prompt_expand?",
    ),
    ('"0,1"', '"0,1,2"', 21, "stages[1].devices", "3 devices for 2 replicas of 1"),
    ('"0,1"', "0", 21, "stages[1].devices", "expected str, got int; quote it"),
    ("num_replicas: 2", "num_replicas: -1", 22, "stages[1].num_replicas", "must be from 0 to 1024, not -1"),
    ("source: 0", "source: 5", 26, "edges[0].source", "stage 5 does not exist; the stages are 0, 1"),
    ("source: 0", "source: 1", 27, "edges[0].target", "cannot lead from stage 1 to itself"),
    ("target: 1", "target: 9", 27, "edges[0].target", "stage 9 does not exist"),
    ("forwarding: direct", "forwarding: directly", 28, "edges[0].forwarding", "did you mean direct?"),
    ("payload: object", "payload: objekt", 29, "edges[0].payload", "did you mean object?"),
    ("payload: object", "payloud: object", 29, "edges[0].payloud", "did you mean payload?"),
    ("    payload: object\n", "  - {source: 0, target: 1}\n", 29, "edges[1]", "edge (0, 1) is used twice"),
    ("deadline: 5m", "deadline: {5m", 4, None, "not valid YAML"),
    ("deadline: 5m", "\tdeadline: 5m", 3, None, "not valid YAML"),
    ("deadline: 5m", "<<: {deadline: 3}", 3, None, "not valid YAML"),
    ("deadline: 5m", "? [a, b]\n: 5", 3, None, "must be text"),
    ("deadline: 5m", "3: 5", 3, None, "the key 3 must be text; quote it"),
    ("deadline: 5m", "deadline: !!python/object:os.system {}", 3, None, "not valid YAML"),
    ("deadline: 5m", "deadline: 2024-13-01", 3, "deadline", "not valid YAML"),
    ("deadline: 5m", "---", 3, None, "not valid YAML"),
    ("{max_model_len: 256}", "&loop {inner: *loop}", 12, "stages[0].engine_args", "nested deeper than"),
]


@pytest.mark.parametrize("edit", BAD_EDITS, ids=[edit[1][:40] for edit in BAD_EDITS])
def test_error_names_file_line_and_field_when_the_file_is_wrong(
    tmp_path: Path, edit: tuple[str, str, int, str | None, str]
) -> None:
    old, new, line, field, message = edit
    assert GOOD.count(old) >= 1
    file = tmp_path / "bad.yaml"
    file.write_text(GOOD.replace(old, new, 1))

    with pytest.raises(PipelineError) as caught:
        load_pipeline(file)

    assert caught.value.message.startswith(f"{file}:{line}: ")
    assert (caught.value.file, caught.value.line) == (str(file), line)
    assert message in caught.value.message
    if field is not None:
        assert caught.value.field == field
        assert f": {field}: " in caught.value.message


GRAPH = """\
name: graph
stages:
  - {stage_id: 0, name: a, engine: sim, input_sources: [%s]}
  - {stage_id: 1, name: b, engine: sim, input_sources: [0]}
  - {stage_id: 2, name: c, engine: sim, input_sources: [%s], final_output: %s, final_output_type: %s}
edges: [%s]
"""

BAD_GRAPHS = [
    (("2", "1", "true", "text", ""), 4, "stages[1].input_sources", "cycle: 0 → 1 → 2 → 0"),
    (("", "0, 1", "false", "null", ""), 2, "stages", "nothing would be delivered"),
    (("", "0", "true", "text", ""), 4, "stages[1]", "nothing needs stage 'b'"),
    (
        ("", "0, 1", "true", "text", "{source: 0, target: 2, forwarding: direct}"),
        6,
        "edges[0].forwarding",
        "stage 2 joins several inputs",
    ),
    (("", "1", "true", "text", "{source: 0, target: 2}"), 6, "edges[0].target", "not have 0 among its input_sources"),
]


@pytest.mark.parametrize(("parts", "line", "field", "message"), BAD_GRAPHS, ids=[case[3] for case in BAD_GRAPHS])
def test_error_names_the_place_when_the_graph_is_wrong(
    parts: tuple[str, ...], line: int, field: str, message: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(GRAPH % parts, "graph.yaml")

    assert (caught.value.file, caught.value.line, caught.value.field) == ("graph.yaml", line, field)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a list\n", "a pipeline file is a mapping"),
        ("just text", "a pipeline file is a mapping"),
        ("name: x\nstages: []\n", "a pipeline has at least one stage"),
        ("name: x\nstages:\n", "expected array, got null"),
        ("name: x\n", "missing"),
        ("name: x\x00\n", "not valid YAML"),
        pytest.param("name: x\nstages: " + "[" * 5000, "nested too deep", id="nested"),
    ],
    ids=repr,
)
def test_error_is_clear_when_the_file_is_no_pipeline(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        parse_pipeline(text, "odd.yaml")
    assert caught.value.file == "odd.yaml"


@pytest.mark.parametrize("name", ["missing.yaml", "folder.yaml", "latin.yaml"])
def test_error_names_the_file_when_it_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")

    with pytest.raises(PipelineError) as caught:
        load_pipeline(str(tmp_path / name))

    assert caught.value.file == str(tmp_path / name)


def test_presets_are_listed_when_the_name_is_unknown() -> None:
    with pytest.raises(PipelineError, match=r"no pipeline named 'no-such-thing' is shipped.*shipped are"):
        load_pipeline("no-such-thing")


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_file_is_named_when_only_its_ending_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    (tmp_path / f"mine{suffix}").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=f"'mine' is shipped; the file mine{suffix} is there; shipped are"):
        load_pipeline("mine")


def test_every_shipped_preset_is_valid() -> None:
    for name in presets():
        assert load_pipeline(name).name


@pytest.mark.parametrize(
    ("given", "hinted"), [("Qwen/Qwen3-8B", True), ("/no/such/checkpoint", True), ("nothing.yaml", False)]
)
def test_error_says_what_a_pipeline_is_when_a_model_is_given(given: str, hinted: bool) -> None:
    with pytest.raises(PipelineError, match="cannot be read") as caught:
        load_pipeline(given)
    assert ("a pipeline is a YAML file" in caught.value.message) is hinted


STAGE = """\
name: p
stages:
  - stage_id: 0
    name: s
    engine: sim
    final_output: true
    final_output_type: text
    timeout: 90s
    stall_timeout: 2m
    canary: {request: {prompt: hello}, interval: 30s, timeout: 500ms}
"""


def test_durations_of_a_stage_are_read_with_their_units() -> None:
    (stage,) = parse_pipeline(STAGE).stages
    assert (stage.timeout, stage.stall_timeout) == (90.0, 120.0)
    assert stage.canary == CanarySpec(request={"prompt": "hello"}, interval=30.0, timeout=0.5)


@pytest.mark.parametrize(
    ("text", "wrong", "field", "message"),
    [
        ("timeout: 90s", "timeout: soon", "stages[0].timeout", "'soon' is not a duration"),
        ("timeout: 2m", "timeout: 0", "stages[0].stall_timeout", "must be from 0.1 to 604800 seconds, not 0"),
        ("interval: 30s", "interval: 30x", "stages[0].canary.interval", "'30x' is not a duration"),
        ("timeout: 500ms", "timeout: .nan", "stages[0].canary.timeout", "must be from 0.1"),
        ("interval: 30s", "every: 30s", "stages[0].canary.every", "unknown field"),
        ("request: {prompt: hello}, ", "", "stages[0].canary.request", "missing"),
    ],
)
def test_field_of_a_stage_is_named_when_its_duration_or_canary_is_wrong(
    text: str, wrong: str, field: str, message: str
) -> None:
    with pytest.raises(PipelineError, match=re.escape(message)) as caught:
        parse_pipeline(STAGE.replace(text, wrong))
    assert caught.value.field == field
