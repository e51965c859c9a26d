"""Pipeline files that build on others, and what a platform adds."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnibus.errors import PipelineError
from omnibus.pipeline.loading import load_pipeline, parse_pipeline
from omnibus.pipeline.platforms import detect_platform
from omnibus.pipeline.writing import pipeline_yaml

pytestmark = pytest.mark.unit

BASE = """\
name: base
deadline: 30s
stages:
  - stage_id: 0
    name: thinker
    engine: sim
    slots: 2
    env: {A: "1", B: "2"}
    engine_args: {nested: {keep: 1, change: 1}, outputs: {text: text}}
    final_output: true
    final_output_type: text
  - {stage_id: 1, name: dit, engine: sim, input_sources: [0], final_output: true, final_output_type: image}
edges:
  - {source: 0, target: 1, payload: object}
"""

CHILD = """\
base_config: base.yaml
name: child
stages:
  - stage_id: 1
    slots: 7
  - stage_id: 0
    env: {B: "3"}
    engine_args: {nested: {change: 2}}
  - {stage_id: 2, name: vocoder, engine: sim, input_sources: [0], final_output: true, final_output_type: audio}
edges:
  - {source: 0, target: 1, forwarding: direct}
"""

PLATFORMS = """\
platforms:
  cuda:
    stages: [{stage_id: 0, slots: 64}]
  cpu:
    deadline: 90s
    stages:
      - stage_id: 0
        env: {C: "3"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "child.yaml").write_text(CHILD)
    return tmp_path


def test_stages_are_merged_by_id_when_a_file_has_a_base(folder: Path) -> None:
    spec = load_pipeline(folder / "child.yaml")
    assert (spec.name, spec.deadline) == ("child", 30.0)
    assert [stage.name for stage in spec.stages] == ["thinker", "dit", "vocoder"]
    assert [stage.slots for stage in spec.stages] == [2, 7, 1]
    assert spec.stages[0].env == {"A": "1", "B": "3"}
    assert spec.stages[0].engine_args == {"nested": {"keep": 1, "change": 2}, "outputs": {"text": "text"}}
    assert (spec.edge(0, 1).payload, spec.edge(0, 1).forwarding) == ("object", "direct")


def test_lists_that_are_no_stages_or_edges_are_replaced_when_merged(folder: Path) -> None:
    text = "base_config: child.yaml\nlanes: [interactive, batch]\nstages: [{stage_id: 2, input_sources: [1]}]\n"
    spec = parse_pipeline(text, str(folder / "grandchild.yaml"))
    assert spec.stages[2].input_sources == (1,)
    assert spec.lanes == ("interactive", "batch")


def test_base_may_be_a_shipped_pipeline_when_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base_config: omni-tiny\nname: mine\nstages: [{stage_id: 1, slots: 3}]\n")
    mine, tiny = load_pipeline(file), load_pipeline("omni-tiny")
    assert mine.stages[1].slots == 3
    assert mine.stages[2:] == tiny.stages[2:]


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("slots: 7", "slots: 0", 5, "stages[1].slots: must be from 1"),
        ("slots: 7", "slotz: 7", 5, "stages[1].slotz: unknown field; did you mean slots?"),
        ("slots: 7", "dtype: float32", 5, "goes under engine_args"),
        ("stage_id: 2, name: vocoder", "stage_id: 2, name: dit", 9, "'dit' is used twice"),
        ("name: vocoder, ", "", 9, "stages[2].name: missing"),
        ("base.yaml", "nothing.yaml", 1, "base_config: there is no file"),
        ("base.yaml", "3", 1, "base_config: must be a file or the name"),
        ("base.yaml", "omni-tinny", None, "did you mean omni-tiny?"),
    ],
)
def test_error_names_the_file_that_is_wrong_when_several_are_merged(
    folder: Path, old: str, new: str, line: int | None, says: str
) -> None:
    (folder / "child.yaml").write_text(CHILD.replace(old, new, 1))
    with pytest.raises(PipelineError) as caught:
        load_pipeline(folder / "child.yaml")
    assert says in caught.value.message
    if line is not None:
        assert (caught.value.file, caught.value.line) == (str(folder / "child.yaml"), line)


def test_error_names_the_base_when_the_base_is_wrong(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE.replace("slots: 2", "slots: 0"))
    with pytest.raises(PipelineError) as caught:
        load_pipeline(folder / "child.yaml")
    assert (caught.value.file, caught.value.line) == (str(folder / "base.yaml"), 7)


def test_error_names_file_and_line_when_files_inherit_in_a_cycle(folder: Path) -> None:
    (folder / "base.yaml").write_text("# a comment\nbase_config: ./child.yaml\n" + BASE)
    with pytest.raises(PipelineError, match=r"child\.yaml → base\.yaml → child\.yaml") as caught:
        load_pipeline(folder / "child.yaml")
    assert (caught.value.file, caught.value.line) == (str(folder / "base.yaml"), 2)


def test_overlay_of_the_platform_is_merged_last_when_there_is_one(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE + PLATFORMS)
    cpu, cuda = (load_pipeline(folder / "child.yaml", platform) for platform in ("cpu", "cuda"))
    assert (cpu.deadline, cpu.stages[0].slots, cpu.stages[0].env["C"]) == (90.0, 2, "3")
    assert (cuda.deadline, cuda.stages[0].slots, "C" in cuda.stages[0].env) == (30.0, 64, False)
    assert load_pipeline(folder / "child.yaml", "rocm") == parse_pipeline(CHILD, str(folder / "x.yaml"), "npu")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("cuda:", "cuba:", 16, "'cuba' is not one of cuda, rocm, npu, cpu; did you mean cuda?"),
        ('{C: "3"}', "{C: 3}", 22, "quote it"),
        ("    deadline: 90s", "    deadline: soon", 19, "'soon' is not a duration"),
        ("platforms:", "platforms: [cpu]\nx:", 15, "must be a mapping with some of cuda"),
    ],
)
def test_error_names_the_line_when_an_overlay_is_wrong(
    tmp_path: Path, old: str, new: str, line: int, says: str
) -> None:
    text = (BASE + PLATFORMS).replace(old, new, 1)
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text, "overlaid.yaml", "cpu")
    assert says in caught.value.message
    assert (caught.value.file, caught.value.line) == ("overlaid.yaml", line)


@pytest.mark.parametrize(
    ("device", "platform"),
    [("nvidia0", "cuda"), ("nvidiactl", "cpu"), ("kfd", "rocm"), ("davinci3", "npu"), ("null", "cpu")],
)
def test_platform_is_detected_by_device_files(tmp_path: Path, device: str, platform: str) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / device).touch()
    assert detect_platform(tmp_path) == platform


def test_file_written_of_what_was_merged_says_the_same_when_loaded(folder: Path) -> None:
    spec = load_pipeline(folder / "child.yaml")
    written = pipeline_yaml(spec)
    assert parse_pipeline(written) == spec
    assert "base_config" not in written
    assert "revision" not in written, "defaults are left out"
