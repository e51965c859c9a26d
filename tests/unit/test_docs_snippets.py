"""Every block of code on every page can work: it is read by the parser that will read it. What runs is in tests/full.

A block that none of these checks can read fails here, until it is mended or stands, with a reason, in a table below.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest

from omnibus.errors import PipelineError
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support.command_checks import CannotWork, check_command
from tests.support.snippets import PAGES, ROOT, Key, Snippet, commands_of, script_of, snippets

pytestmark = pytest.mark.unit

BLOCKS = list(snippets())
DRAWINGS = {"ARCHITECTURE.md", "docs/reference/omni-tiny.md"}
"""Pages with a drawing in a block without a language."""
WHOLE_SCRIPTS = {
    (
        "docs/guide/quickstart.md",
        "pid=$(omnibus status",
    ): "a loop; tests/full/test_docs_snippets.py runs it",
}
"""Blocks of shell that are more than commands in a row."""
AROUND_A_STAGE = """name: snippet
stages:
- {stage_id: 0, name: thinker, engine: sim}
- stage_id: 1
  name: last
  engine: sim
  input_sources: [0]
  final_output: true
  final_output_type: audio
"""
"""The file around a block that has fields of a stage alone."""
THEIR_YAML: dict[Key, str] = {
    ("docs/guide/migrate.md", "stage_args:"): "a file of vLLM-Omni's: tests/unit/test_migrate.py has it refused",
}
NEED_A_PACKAGE: dict[Key, str] = {("docs/guide/engines.md", "name: loud"): "shout"}
"""Pipelines with an engine that is not installed here: full/test_engine_package.py serves one."""


def _of(*languages: str) -> list[Snippet]:
    return [block for block in BLOCKS if block.language in languages]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_has_a_language_that_is_checked() -> None:
    known = {"sh", "console", "python", "yaml", "toml"}
    assert [str(block) for block in BLOCKS if block.language not in known and block.page not in DRAWINGS] == []
    assert len(BLOCKS) > 60


def test_tables_name_blocks_that_there_are() -> None:
    for table in (WHOLE_SCRIPTS, THEIR_YAML, NEED_A_PACKAGE):
        assert {block.entry(table) for block in BLOCKS} - {None} == set(table)
    assert {page for page in DRAWINGS if (ROOT / page) not in PAGES} == set()


@pytest.mark.parametrize("block", _of("sh", "console"), ids=str)
def test_command_lines_can_work(block: Snippet, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=script_of(block), capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 0, done.stderr
    if block.entry(WHOLE_SCRIPTS):
        return
    for other in _of("yaml"):
        if other.page == block.page and (name := re.match(r"name: (\S+)", other.text)):
            (folder / f"{name[1]}.yaml").write_text(other.text)
    for words in commands_of(block):
        check_command(words, folder)


def test_command_that_cannot_work_is_noticed(folder: Path) -> None:
    for line in (
        "python examples/none.py",
        "omnibus submitt x", "omnibus submit --sise 5 x", "make everything", "python -m bench.nothing", "whatever",
        "omnibus keys burn x", "curl http://127.0.0.1:8000/v1/chats", "pip install .[gold]", "export OMNIBUS_NO_SUCH=1",
    ):  # fmt: skip
        with pytest.raises(CannotWork):
            check_command(line.split(), folder)


@pytest.mark.parametrize("block", _of("yaml"), ids=str)
def test_pipeline_file_is_valid(block: Snippet, folder: Path) -> None:
    if block.entry(THEIR_YAML):
        return
    text = _completed(block.text)
    file = folder / "snippet.yaml"
    file.write_text(text)
    if package := block.entry(NEED_A_PACKAGE):
        with pytest.raises(PipelineError, match=f"'{NEED_A_PACKAGE[package]}' is not one of .* must be installed"):
            load_pipeline(str(file))
    else:
        load_pipeline(str(file))


def _completed(text: str) -> str:
    """A whole file: around stages without a name, around fields of one stage, and in place of `…` in one."""
    bare = textwrap.dedent(text).replace("…}", "final_output: true, final_output_type: image}")
    first = bare.partition(":")[0]
    if first in set(StageSpec.__struct_fields__) - set(PipelineSpec.__struct_fields__):
        return AROUND_A_STAGE + textwrap.indent(bare, "  ")
    return f"name: snippet\n{bare}" if first == "stages" else bare


@pytest.mark.parametrize("block", _of("python"), ids=str)
def test_code_compiles_and_imports_what_there_is(block: Snippet) -> None:
    tree = compile(block.text, str(block), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("omnibus"):
            module = importlib.import_module(node.module)
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert missing == [], node.module


def test_engine_of_its_page_is_the_package_that_tests_serve() -> None:
    shown = [block.text for block in _of("toml", "python") if block.page == "docs/guide/engines.md"]
    shown = [re.sub(r"\A# \S+\n", "", text) for text in shown]  # the file's name
    package = ROOT / "tests/packages/shout_engine"
    files = ("pyproject.toml", "shout_engine/__init__.py", "shout_engine/engine.py")
    assert shown == [(package / file).read_text() for file in files]


@pytest.mark.parametrize("block", _of("toml"), ids=str)
def test_toml_can_be_read(block: Snippet) -> None:
    assert tomllib.loads(block.text)


def test_yaml_of_the_site_names_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE)
    assert len(pages) == len(set(pages))
