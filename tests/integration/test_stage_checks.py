"""`pipeline validate` accepts nothing that cannot be served, and a missing model is found before anything is started."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from omnibus.pipeline.loading import parse_pipeline, presets
from omnibus.pipeline.plain_values import Problem
from omnibus.workers.stage_checks import problems_of_names
from tests.support.served import command_line, write_pipeline

pytestmark = pytest.mark.integration
FILE = """\
name: p
stages:
- stage_id: 0
  name: s
  final_output: true
  final_output_type: {type}
{more}
"""
STAGES = """\
import os, sys, time
print("a module may print")


def answer(stage_input):
    return os.environ.get("OF_STAGE", "")


class Shouter:
    def __init__(self, mark, times=1):
        raise RuntimeError("nothing is constructed")

    def __call__(self, stage_input):
        return ""


class Silent:
    pass


class Static:
    @staticmethod
    def __call__(stage_input):
        return ""


def nothing(): ...


def three(stage_input, sampling, more): ...


def many(*everything, **named): ...


number = 3
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules that can be imported, for good or ill."""
    (tmp_path / "good_stages.py").write_text(STAGES)
    (tmp_path / "broken_stages.py").write_text("import good_stages\nraise RuntimeError('not today')\n")
    (tmp_path / "ending_stages.py").write_text("import os\nos._exit(3)\n")
    (tmp_path / "exiting_stages.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "endless_stages.py").write_text("import time\ntime.sleep(3600)\n")
    (tmp_path / "picky_stages.py").write_text("import os\nos.environ['OF_STAGE']\n\ndef answer(stage_input): ...\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    return tmp_path


def _validate(folder: Path, *more: str, modality: str = "text") -> subprocess.CompletedProcess[str]:
    text = FILE.format(type=modality, more="\n".join(f"  {line}" for line in more))
    words = command_line("pipeline", "validate", str(write_pipeline(folder, text)))
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=100.0)


@pytest.mark.parametrize(
    "more",
    [
        ["engine: python", "model: good_stages:answer"],
        ["engine: python", "model: good_stages:Shouter", "engine_args: {mark: '!', outputs: {text: text}}"],
        ["engine: python", "model: good_stages:Static"],
        ["engine: python", "model: good_stages:many"],
        ["engine: python", "model: picky_stages:answer", "env: {OF_STAGE: set}"],
        ["engine: sim", "input_processor: good_stages:answer", "engine_args: {latency: 0.1}"],
        ["engine: vllm", "model: org/model", "engine_args: {max_model_len: 256, hidden_states: [0]}"],
        ["engine: vllm", "model: /nowhere/else", "num_replicas: 0"],
    ],
    ids=str,
)
def test_file_is_accepted_when_all_that_it_names_is_there(modules: Path, more: list[str]) -> None:
    done = _validate(modules, *more)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ok, p: text\n")


@pytest.mark.parametrize(
    ("more", "line", "says"),
    [
        (["engine: python", "model: good_stages:missing"], 8, "model: .*good_stages has no 'missing'"),
        (["engine: python", "model: good_stages:anser"], 8, "has no 'anser'; did you mean answer?"),
        (["engine: python", "model: no_such_module:f"], 8, "model: .*No module named 'no_such_module'"),
        (["engine: python", "model: good_stages:number"], 8, "model: .*cannot be called"),
        (["engine: python", "model: good_stages:Silent"], 8, "it has no __call__"),
        (["engine: python", "model: good_stages:nothing"], 8, r"it takes \(\)"),
        (["engine: python", "model: good_stages:three"], 8, r"the sampling parameters; it takes \(stage_input, sampling, "),
        (["engine: python", "model: broken_stages:f"], 8, "model: cannot be imported: RuntimeError: not today"),
        (["engine: python", "model: exiting_stages:f"], 8, "model: cannot be imported: SystemExit"),
        (["engine: python", "model: ending_stages:f"], 8, r"model: ends the process that imports it \(3\)"),
        (["engine: python", "model: picky_stages:answer"], 8, "model: cannot be imported: KeyError"),
        (["engine: python", "model: good_stages:Shouter"], 3, "engine_args: .*missing a required argument: 'mark'"),
        (["engine: python", "model: good_stages:Shouter", "engine_args: {mark: 1, marks: 2}"], 9, "unexpected keyword"),
        (["engine: python", "model: good_stages:answer", "engine_args: {mark: 1}"], 9, "takes no engine_args"),
        (["engine: sim", "input_processor: good_stages:missing"], 8, "input_processor: .*has no 'missing'"),
        (["engine: sim", "prompt_expand: good_stages:missing"], 8, "prompt_expand: .*has no 'missing'"),
        (["engine: sim", "engine_args: {latancy: 1}"], 8, "latancy"),
        (["engine: vllm", "model: org/m", "engine_args: {max_model_length: 9}"], 9, "did you mean max_model_len"),
        (["engine: vllm", "model: org/m", "engine_args: {hidden_states: all}"], 9, "engine_args.hidden_states"),
        (["engine: vllm", "model: /nowhere/else"], 8, "model: there is no checkpoint at /nowhere/else"),
        (["engine: vllm", "model: package:omnibus/none"], 8, "model: there is no checkpoint at"),
        (["engine: vllm", "model: /usr"], 8, "model: /usr is no checkpoint: it has no config.json"),
    ],
    ids=str,
)  # fmt: skip
def test_file_is_refused_with_its_place_when_it_names_what_is_not_there(
    modules: Path, more: list[str], line: int, says: str
) -> None:
    done = _validate(modules, *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"pipeline.yaml:{line}: stages[0]" in done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_module_is_refused_when_its_import_does_not_end(modules: Path) -> None:
    text = FILE.format(type="text", more="  engine: python\n  model: endless_stages:f")
    (problem,) = problems_of_names(parse_pipeline(text), timeout=5.0)
    assert problem == Problem(("stages", 0, "model"), "is not imported within 5 s")


@pytest.mark.parametrize("name", presets())
def test_shipped_pipeline_is_accepted(name: str) -> None:
    words = command_line("pipeline", "validate", name)
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100.0)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_started_when_a_model_is_missing(tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, FILE.format(type="text", more="  engine: vllm\n  model: /nowhere/else"))
    words = command_line("serve", str(file), "--port", "0", "--nats-port", "0", "--state-dir", str(tmp_path / "state"))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60.0)
    assert done.returncode == 2
    assert "stage 's': there is no checkpoint at /nowhere/else" in done.stderr
    assert not (tmp_path / "state").exists()
