"""Ports that are taken: `omnibus serve` says so before it starts anything."""

from __future__ import annotations

import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from omnibus.errors import StageStartError
from tests.support.served import command_line, write_pipeline
from tools.serving import serving

pytestmark = pytest.mark.integration


def test_port_is_named_before_anything_starts_when_it_is_taken(tmp_path: Path) -> None:
    said: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with (
            pytest.raises(StageStartError) as caught,
            serving(
                str(write_pipeline(tmp_path)),
                "--port",
                port,
                "--nats-port",
                "0",
                state_dir=tmp_path / "state",
                timeout=30,
                say=said.append,
            ),
        ):
            pass
    assert f"port {port} on 127.0.0.1 is taken" in caught.value.message
    assert "--no-frontdoor" in caught.value.message
    assert not said


def test_checkpoint_in_one_file_is_not_unpacked_when_the_port_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIBUS_CACHE_DIR", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    text = f"""
name: packed
stages:
- {{stage_id: 0, name: codec, engine: transformers, model: {tmp_path}/model.zip, final_output: true,
   final_output_type: audio}}
"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ("serve", str(write_pipeline(tmp_path, text)), "--port", port, "--nats-port", "0")
        done = subprocess.run(
            command_line(*words, "--state-dir", str(tmp_path / "state")),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, f"port {port} on 127.0.0.1 is taken" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("is_variable", [False, True], ids=["option", "variable"])
def test_port_of_the_broker_is_refused_when_it_was_asked_for_and_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_variable: bool
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        if is_variable:
            monkeypatch.setenv("OMNIBUS_NATS_PORT", port)
        asked = () if is_variable else ("--nats-port", port)
        words = (
            "serve",
            str(write_pipeline(tmp_path)),
            "--no-frontdoor",
            *asked,
            "--state-dir",
            str(tmp_path / "state"),
        )
        done = subprocess.run(command_line(*words), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken; choose another with --nats-port" in done.stderr
    assert not (tmp_path / "state").exists()
