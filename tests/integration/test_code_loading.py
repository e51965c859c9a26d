"""A specification that somebody writes into the broker has no worker import, load or run what it names."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.wire import stores
from tests.support.served import command_line, environment, write_pipeline
from tests.support.waiting import eventually
from tools.serving import serving

pytestmark = pytest.mark.integration

SERVED = """
name: target
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: stage, engine: sim, final_output: true, final_output_type: text}
"""
CODE = "import pathlib, sys\npathlib.Path(__file__).with_name('run').touch()\n\ndef answer(stage_input):\n    return 'text'\n"
ATTACKS: list[dict[str, Any]] = [
    {"engine": "python", "model": "attack:answer"},
    {"input_processor": "attack:answer"},
    {"python": "{folder}/python"},
    {"env": {"PYTHONPATH": "{folder}", "PYTHONSTARTUP": "{folder}/path/attack.py"}},
    {
        "engine": "transformers",
        "model": ".",
        "final_output_type": "audio",
        "engine_args": {"model_class": "attack:Model"},
    },
]


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that every process can import; a file `run` beside it tells that one did."""
    folder = tmp_path / "attack"
    (folder / "path").mkdir(parents=True)
    (folder / "path" / "attack.py").write_text(CODE)
    (folder / "sitecustomize.py").write_text(CODE)
    (folder / "python").write_text(f"#!/bin/sh\ntouch {folder}/run\n")
    (folder / "python").chmod(0o755)
    monkeypatch.setenv("OMNIBUS_ALLOWED_MODULES", "")
    return folder


def _attacked(changes: dict[str, Any], folder: Path) -> PipelineSpec:
    spec = parse_pipeline(SERVED)
    fields = msgspec.json.decode(msgspec.json.encode(changes).replace(b"{folder}", str(folder).encode()))
    return msgspec.structs.replace(spec, stages=(msgspec.structs.replace(spec.stages[0], **fields),))


def _has_run(folder: Path) -> bool:
    return bool(list(folder.rglob("run")))


def _worker(server: EmbeddedServer, folder: Path, *flags: str) -> subprocess.Popen[str]:
    env = {**environment(server.url), "PYTHONPATH": os.pathsep.join((str(folder / "path"), str(Path.cwd())))}
    return subprocess.Popen(
        command_line("worker", "--stage", "stage", *flags), env=env, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


@pytest.mark.parametrize("changes", ATTACKS, ids=str)
async def test_worker_refuses_and_runs_nothing_when_only_the_broker_names_code(
    own_server: EmbeddedServer, attack: Path, changes: dict[str, Any]
) -> None:
    async with connect(own_server.url, name="test") as connection:
        await deploy_pipeline(connection, spec := _attacked(changes, attack))
        # As one writes it who does not leave out what is no business of the broker.
        await Bucket(connection, stores.PIPELINES_BUCKET).put("target", msgspec.msgpack.encode(spec))
    _, error = _worker(own_server, attack).communicate(timeout=60.0)

    assert "would have code loaded" in error
    assert "--allow-module" in error
    assert not _has_run(attack)


@pytest.mark.parametrize("is_given_by", ["flag", "file"])
async def test_worker_serves_what_the_broker_names_when_it_is_allowed(
    own_server: EmbeddedServer, attack: Path, is_given_by: str
) -> None:
    async with connect(own_server.url, name="test") as connection:
        await deploy_pipeline(connection, _attacked(ATTACKS[0], attack))
    file = write_pipeline(attack, SERVED.replace("engine: sim", "engine: python, model: 'attack:answer'"))
    flags = {"flag": ("--allow-module", "attack"), "file": ("--pipeline", str(file))}
    worker = _worker(own_server, attack, *flags[is_given_by])
    try:
        await eventually(lambda: _has_run(attack), 60.0)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60.0)


async def test_replica_that_starts_again_refuses_when_its_specification_was_exchanged(
    attack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(attack / "path"), str(Path.cwd()))))
    file = write_pipeline(tmp_path, SERVED)
    with serving(str(file), "--no-frontdoor", "--nats-port", "0", state_dir=tmp_path / "state") as served:
        async with connect(served.nats_url, name="test") as connection:
            bucket = Bucket(connection, stores.PIPELINES_BUCKET)
            await bucket.put("target", msgspec.msgpack.encode(_attacked(ATTACKS[0], attack)))
            replicas = Bucket(connection, stores.replicas_bucket("target"))
            (key,) = await replicas.keys()
            entry = await replicas.get(key)
            assert entry is not None
            os.kill(msgspec.msgpack.decode(entry.value)["pid"], signal.SIGKILL)
            await eventually(lambda: "code_not_allowed" in served.log.read_text(), 60.0)
    assert not _has_run(attack)
