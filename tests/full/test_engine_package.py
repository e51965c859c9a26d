"""An engine in a package of its own: installed, named in a pipeline file, served, and shown, by touching nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.served import command_line, omnibus, write_pipeline
from tools.serving import serving

pytestmark = pytest.mark.integration
PACKAGE = Path(__file__).parents[1] / "packages" / "shout_engine"
PIPELINE = """
name: loud
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: speaker, engine: shout, slots: 4, final_output: true, final_output_type: text, engine_args: {mark: "?"}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package, built and installed by pip into a folder that every process of this module finds."""
    folder = tmp_path_factory.mktemp("package")
    source = shutil.copytree(PACKAGE, folder / "source")  # a build writes beside its source
    site = folder / "site"
    words = [
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
        str(source),
    ]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(site), str(Path.cwd()))))
        patch.setenv("OMNIBUS_ALLOWED_MODULES", "")
        yield site


def test_engine_of_a_package_is_served_and_shown_when_it_is_installed(installed: Path, tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, PIPELINE)
    with serving(str(file), "--port", "0", "--nats-port", "0", state_dir=tmp_path / "state") as served:
        asked = httpx.post(
            f"{served.url}/v1/completions", json={"model": "loud", "prompt": "who is there"}, timeout=30.0
        )
        chat = {"model": "loud", "messages": [{"role": "user", "content": "and here"}]}
        chatted = httpx.post(f"{served.url}/v1/chat/completions", json=chat, timeout=30.0)
        submitted = omnibus("submit", "say it", nats=served.nats_url)
        status = json.loads(omnibus("status", "--json", nats=served.nats_url).stdout)
        table = omnibus("status", nats=served.nats_url).stdout
    assert asked.json()["choices"][0]["text"] == "WHO IS THERE?"
    assert chatted.json()["choices"][0]["message"]["content"] == "AND HERE?"
    assert submitted.stdout == "SAY IT?\n", submitted.stderr
    (stage,) = status["stages"]
    assert (stage["engine"], [one["status"] for one in stage["replicas"]]) == ("shout", ["up"])
    assert "speaker" in table


def test_file_is_checked_by_the_packages_entry(installed: Path, tmp_path: Path) -> None:
    for wrong, says in (
        (PIPELINE.replace("mark:", "marks:"), "the engine shout has no such argument; did you mean mark?"),
        (PIPELINE.replace("type: text", "type: image"), "the engine shout delivers text, not image"),
        (PIPELINE.replace("engine: shout", "engine: shoot"), "did you mean shout?"),
    ):
        done = subprocess.run(
            command_line("pipeline", "validate", str(write_pipeline(tmp_path, wrong))),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_engine_is_unknown_when_its_package_is_not_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        command_line("pipeline", "validate", str(write_pipeline(tmp_path, PIPELINE))),
        env={**os.environ, "PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'shout' is not one of diffusers, vllm, transformers, python, sim" in done.stderr
