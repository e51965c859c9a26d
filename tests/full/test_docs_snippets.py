"""Blocks of code in the documentation, run as their reader runs them, against a served omni-tiny.

Every block of shell and Python runs here, or stands in NOT_RUN with the test that does it, or the reason.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.snippets import ROOT, Key, Snippet, script_of, shown_of, snippets
from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BLOCKS = [block for block in snippets() if block.language in ("sh", "console", "python")]
STARTS = "starts servers that the fixture here has started, or installs"
NOT_RUN: dict[Key, str] = {
    ("README.md", "make demo"): "full/test_demo.py",
    ("README.md", "make setup && . .venv/bin/activate"): STARTS,
    ("CONTRIBUTING.md", "make setup"): "these tests",
    ("docs/guide/quickstart.md", "make demo"): "full/test_demo.py",
    ("docs/guide/quickstart.md", "make setup && . .venv/bin/activate"): STARTS,
    "docs/guide/deploy.md": "integration/test_deployment_files.py, full/test_runbook_hosts.py",
    "docs/guide/engines.md": "full/test_engine_package.py",
    "docs/guide/migrate.md": "unit/test_migrate.py",
    "docs/guide/own-stage.md": "full/test_guide_own_stage.py, test_open_input_front_doors.py, test_interpreters.py",
    "docs/guide/own-model.md": "e2e/test_frontdoor_speech_models.py, test_diffusers_http.py: small models for those on the hub",
    "docs/guide/presets.md": "full/test_preset_smollm2.py",
    "docs/guide/scale.md": "unit/test_bench_scale.py",
    "docs/guide/serving.md": "full/test_scenarios.py, full/test_scenario_netns.py",
    (
        "docs/guide/python.md",
        "from omnibus import AsyncOmni, Omni",
    ): "integration/test_facade_omni.py: starts four pipelines",
    (
        "docs/guide/asking.md",
        "first = client.responses.create",
    ): "integration/test_responses.py: omni-tiny holds no conversation",
    "docs/reference/benchmarks.md": "full/test_benches.py",
    "docs/reference/clients.md": "full/clients/test_libraries.py",
    "docs/reference/chaos.md": "chaos/test_short.py",
    ("docs/reference/pipelines.md", "def with_negative(stage_input):"): "integration/test_companions.py",
    "examples/comfyui/README.md": "full/clients/test_comfyui.py",
    "examples/node/README.md": "full/test_node_producer.py",
    "packages/omnibus-vllm-omni/README.md": "full/test_vllm_omni.py",
}
"""By block, or by page: the tests that run the same, or why nothing does."""
REFUSED = {"omnibus submit --image photo.png": "omni-tiny sees no pictures, as the page says"}
"""Beginnings of commands that the page shows for other models: the request fails here, with exit code 1."""
PRELUDES = {
    "docs/guide/python.md": "from omnibus import Omni, AsyncOmni\nomni = Omni('omni-tiny')\n",
    "docs/guide/asking.md": "class player:\n    write = bytearray().extend\n",
}
"""What a page takes for granted."""
LINES = [
    {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions",
     "body": {"model": "omni-tiny", "messages": [{"role": "user", "content": f"a {colour} circle"}]}}
    for number, colour in enumerate(("red", "blue"))
]  # fmt: skip


def is_run(block: Snippet) -> bool:
    return block.entry(NOT_RUN) is None


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody in a folder of their own, with the commands and the served pipeline of the pages."""

    home: Path
    served: Serving

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return {**os.environ, "HOME": str(self.home), "PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": caches}

    def placed(self, text: str) -> str:
        """A block with the ports that the pipeline has here."""
        nats = re.sub(r".*@|^nats://", "", self.served.nats_url)
        return text.replace("127.0.0.1:8000", self.served.url.removeprefix("http://")).replace("127.0.0.1:4222", nats)

    def run(self, *command: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.home, env={**self.environment, **environment}, input=stdin,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    home = tmp_path_factory.mktemp("home")
    (home / "requests.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    (home / "photo.png").write_bytes((ROOT / "docs/images/red-circle-left-of-blue-square.png").read_bytes())
    for block in snippets():
        if block.language == "yaml" and (name := re.search(r"^name: (mine)$", block.text, re.MULTILINE)):
            (home / f"{name[1]}.yaml").write_text(block.text)
    stand_in = home / "bin" / "nats"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nexec python -m tests.support.nats_request "$@"\n')
    stand_in.chmod(0o755)
    state = home / ".local" / "state" / "omnibus"
    with serving("omni-tiny", "--port", "0", "--nats-port", "0", state_dir=state) as served:
        yield Reader(home, served)


def test_tables_name_blocks_and_tests_that_there_are() -> None:
    assert {block.entry(NOT_RUN) for block in BLOCKS} - {None} == set(NOT_RUN)
    named = re.findall(r"test_\w+\.py", " ".join(NOT_RUN.values()))
    assert [name for name in named if not list((ROOT / "tests").rglob(name))] == []
    assert sum(map(is_run, BLOCKS)) > 15


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "sh" and is_run(one)], ids=str)
def test_commands_run(reader: Reader, block: Snippet) -> None:
    script = reader.placed(script_of(block))
    done = reader.run("omnibus", "submit", "--request-id", f"for-{block.line}", "-m", "text", "a red circle")
    assert done.returncode == 0, done.stderr
    script = script.replace("REQUEST_ID", f"for-{block.line}")
    script = re.sub(r"^omnibus top\b", "omnibus top --count 2", script, flags=re.MULTILINE)  # else it ends with Ctrl-C
    for refused in REFUSED:
        script = re.sub(
            rf"^({re.escape(refused)}.*)$", r"(\n\1\n) && exit 99 || [ $? = 1 ]", script, flags=re.MULTILINE
        )
    done = reader.run("bash", "-euo", "pipefail", "-c", script)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "console" and is_run(one)], ids=str)
def test_commands_show_what_the_page_says(reader: Reader, block: Snippet) -> None:
    for command, shown in shown_of(block):
        done = reader.run("bash", "-c", reader.placed(command))
        lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
        wanted = shown.splitlines()
        assert len(lines) == len(wanted), done
        # Files are saved as their stages end: in any order.
        assert [one for one in wanted if not any(re.fullmatch(_pattern(one), line) for line in lines)] == [], done


def _pattern(line: str) -> str:
    """A line as another machine may have it: numbers, the host's name and the width of columns differ."""
    words = [re.sub(r"\d+", r"\\d+(?:\\+\\w+)?", re.escape(word).replace("…", ".*")) for word in line.split()]
    return r"\s+".join(re.sub(r"^host:", r"[\\w.-]+:", word) for word in words)


def _pages_with_python() -> list[str]:
    return list(dict.fromkeys(block.page for block in BLOCKS if block.language == "python" and is_run(block)))


@pytest.mark.parametrize("page", _pages_with_python())
def test_code_of_a_page_runs_from_its_top_to_its_end(reader: Reader, page: str) -> None:
    blocks = [
        (str(one), reader.placed(one.text))
        for one in BLOCKS
        if one.page == page and one.language == "python" and is_run(one)
    ]
    code = json.dumps([("prelude", PRELUDES.get(page, "")), *blocks])
    done = reader.run(
        sys.executable, "-m", "tests.support.snippet_runner", stdin=code, OMNIBUS_NATS_URL=reader.served.nats_url
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if page == "docs/guide/asking.md":
        assert (reader.home / "circle.mp4").read_bytes()[4:8] == b"ftyp", "the video was downloaded"
