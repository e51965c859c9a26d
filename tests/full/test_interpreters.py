"""A stage in an environment of its own: another interpreter, other packages, the same broker."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import connect
from omnibus.wire import stores
from omnibus.wire.envelope import VERSION
from tests.support.other_python import NUMPY, ROOT, make_environment, site_packages
from tests.support.served import command_line, omnibus, start
from tools.serving import Serving, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

STAGE = """
import os, sys
import numpy

def environment(stage_input):
    before = {"before": one["value"]["numpy"] for one in stage_input.sources.values()}
    return {"prefix": sys.prefix, "numpy": numpy.__version__, "path": os.environ.get("PYTHONPATH", ""), **before}
"""
PIPELINE = """
name: two
heartbeat_timeout: 2s
stages:
- {{stage_id: 0, name: here, engine: python, model: "stage_code:environment"}}
- {{stage_id: 1, name: there, engine: python, model: "stage_code:environment", input_sources: [0], python: {python},
   prompt_expand: "only_there:expanded", final_output: true, final_output_type: json}}
"""
FILE = """
name: one
stages:
- {{stage_id: 0, name: there, engine: python, model: "stage_code:environment", python: {python}, final_output: true,
   final_output_type: json}}
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the other environment, which alone has the module `only_there`."""
    python = make_environment(tmp_path_factory.mktemp("other") / "venv")
    (site_packages(python) / "only_there.py").write_text("def expanded(stage_input): ...\n")
    (site_packages(python) / "stage_code.py").write_text(STAGE)
    return python


@pytest.fixture(scope="module")
def stage_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same module here, found by PYTHONPATH."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "stage_code.py").write_text(STAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(folder), str(ROOT))))
        yield str(folder)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a package omnibus in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str, python: str | Path) -> str:
    file = folder / "pipeline.yaml"
    file.write_text(text.format(python=python))
    return str(file)


@pytest.fixture
def served(other: Path, stage_code: str, elsewhere: Path) -> Iterator[Serving]:
    with serving(
        written(elsewhere, PIPELINE, other), "--no-frontdoor", "--nats-port", "0", state_dir=elsewhere / "state"
    ) as made:
        yield made


def test_stages_have_packages_of_their_own_and_one_request(served: Serving, other: Path) -> None:
    done = omnibus("submit", "hello", "--json", nats=served.nats_url)
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    there = json.loads(Path(output["files"][0]).read_text())
    assert there == {"prefix": str(other.parents[1]), "numpy": NUMPY, "path": "", "before": np.__version__}

    status = json.loads(omnibus("status", "--json", nats=served.nats_url).stdout)
    shown = [stage["replicas"][0]["versions"]["numpy"] for stage in status["stages"]]
    assert shown == [np.__version__, NUMPY]
    asyncio.run(assert_not_deployed(str(other), served.nats_url))


async def assert_not_deployed(path: str, nats: str) -> None:
    """The path is of this machine, and not of the broker."""
    async with connect(nats, name="test") as connection:
        entry = await Bucket(connection, stores.PIPELINES_BUCKET).get("two")
    assert entry is not None
    assert path.encode() not in entry.value


def test_worker_has_the_interpreter_that_its_own_command_names(other: Path, stage_code: str, elsewhere: Path) -> None:
    plain = written(elsewhere, FILE.replace("python: {python},", "num_replicas: 0,"), other)
    flags = ("--no-frontdoor", "--nats-port", "0")
    with serving(plain, *flags, state_dir=elsewhere / "state") as head:
        words = ("--stage", "there", "--allow-module", "stage_code", "--stage-overrides", f"there.python={other}")
        worker = start("worker", *words, nats=head.nats_url, log=elsewhere / "worker.log")
        try:
            done = omnibus("submit", "hello", "--json", nats=head.nats_url, timeout=60.0)
        finally:
            worker.terminate()
            worker.wait(30)
    assert done.returncode == 0, (elsewhere / "worker.log").read_text()
    (output,) = json.loads(done.stdout)["outputs"]
    assert json.loads(Path(output["files"][0]).read_text())["numpy"] == NUMPY


def test_file_is_valid_when_its_modules_are_in_the_other_environment(
    other: Path, stage_code: str, elsewhere: Path
) -> None:
    assert run("pipeline", "validate", written(elsewhere, PIPELINE, other)).returncode == 0
    without = PIPELINE.replace("python: {python},", "")
    done = run("pipeline", "validate", written(elsewhere, without, other))
    assert "No module named 'only_there'" in done.stderr


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("/no/such/venv/bin/python", "cannot be run: No such file or directory"),
        ("/usr", "cannot be run: Permission denied"),
        ("/bin/echo", "has no omnibus"),
        ("{bare}", "has no omnibus"),
        ("venv/bin/python", "no absolute path"),
    ],
)
def test_interpreter_is_refused_before_anything_starts_when_it_cannot_run_the_stage(
    python: str, says: str, elsewhere: Path, other: Path, stage_code: str
) -> None:
    bare = elsewhere / "bare"
    subprocess.run([other, "-m", "venv", "--without-pip", bare], check=True, timeout=60)
    file = written(elsewhere, FILE, python.format(bare=bare / "bin" / "python"))
    for words in (
        ("serve", file, "--port", "0", "--nats-port", "0", "--state-dir", "state"),
        ("pipeline", "validate", file),
    ):
        done = run(*words)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert not (elsewhere / "state").exists()


@pytest.fixture
def older(other: Path, tmp_path: Path) -> Path:
    """An interpreter whose omnibus speaks an older version of the messages."""
    shutil.copytree(other.parents[1], tmp_path / "older", symlinks=True)
    python = tmp_path / "older" / "bin" / "python"
    envelope = site_packages(python) / "omnibus" / "wire" / "envelope.py"
    text = envelope.read_text()
    assert f"\nVERSION = {VERSION}\n" in text
    envelope.write_text(text.replace(f"\nVERSION = {VERSION}\n", "\nVERSION = 1\n"))
    return python


def test_both_versions_are_named_when_the_other_environment_speaks_an_older_one(
    older: Path, stage_code: str, elsewhere: Path
) -> None:
    file = written(elsewhere, FILE, older)
    done = run("serve", file, "--port", "0", "--nats-port", "0", "--state-dir", str(elsewhere / "state"))
    assert done.returncode == 2
    assert (
        f"of {older} speaks version 1 of the messages, and the process that starts it version {VERSION}" in done.stderr
    )


def test_replica_cannot_start_when_it_was_exchanged_for_an_older_one(older: Path, elsewhere: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [older, "-m", "omnibus.workers.replica_main", "--pipeline", "one", "--stage", "there"]
    done = subprocess.run(
        words, env={**env, "OMNIBUS_PARENT_WIRE": f"{VERSION} 9.9"}, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 78
    assert f"version {VERSION}, of omnibus 9.9" in done.stderr


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_line(*words), capture_output=True, text=True, check=False, timeout=100.0)
