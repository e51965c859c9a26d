"""The shipped nats/production.conf: what the table of roles generates, and what `omnibus nats credentials` makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from omnibus.broker.credentials_folder import CONFIG_FILE
from omnibus.broker.nats_access import inbox_prefix, public_key
from omnibus.broker.roles import NatsRole, permissions, rights
from omnibus.broker.server_binary import find_binary, profile_path
from omnibus.cli import cli
from omnibus.pipeline.loading import load_pipeline
from tools import production_conf

_VARIABLE = re.compile(r"\$(OMNIBUS_NATS_\w+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / "keys"
    done = CliRunner().invoke(
        cli, ["nats", "credentials", "all", "-p", production_conf.PIPELINE, "--dir", str(made)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return made


def _values(folder: Path) -> dict[str, str]:
    """The variables of the shipped file, with the values of a folder."""
    values = {
        "OMNIBUS_NATS_STORE": str(folder / "data"), "OMNIBUS_NATS_TLS_CERT": str(folder / "server.pem"),
        "OMNIBUS_NATS_TLS_KEY": str(folder / "server.key"), "OMNIBUS_NATS_TLS_CA": str(folder / "ca.pem"),
    }  # fmt: skip
    for path in folder.glob("*.nk"):
        key = public_key(path.read_text().splitlines()[-1])
        key_variable, inbox_variable = production_conf.variables(path.stem)
        values |= {key_variable: key, inbox_variable: f"{inbox_prefix(key)}.>"}
    return values


def test_shipped_file_is_what_the_table_generates() -> None:
    shipped = profile_path("production").read_text()
    assert shipped == production_conf.text(), "run `python -m tools.production_conf > nats/production.conf`"


def test_shipped_file_is_what_credentials_make_when_its_variables_have_their_values(folder: Path) -> None:
    values = _values(folder)

    def filled(found: re.Match[str]) -> str:
        return values[found[1]] if "_USER_" in found[1] else json.dumps(values[found[1]])

    assert _VARIABLE.sub(filled, production_conf.text()) == (folder / CONFIG_FILE).read_text()


def test_server_accepts_the_shipped_file_when_the_variables_are_set(folder: Path) -> None:
    command = [find_binary(None), "-t", "-c", profile_path("production")]
    done = subprocess.run(
        command, env={**os.environ, **_values(folder)}, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", list(NatsRole))
@pytest.mark.parametrize("pipeline", ["omni-tiny", "llasa"])
def test_every_permission_is_a_subject_with_a_purpose(role: NatsRole, pipeline: str) -> None:
    spec = load_pipeline(pipeline)
    user: dict[str, Any] = {"stages": [stage.stage_id for stage in spec.stages], "token": "token", "inbox": "_INBOX_x"}
    table = permissions(role, spec, **user)
    wanted = {*(f"publish {one}" for one in table.publish), *(f"subscribe {one}" for one in table.subscribe)}
    purposes = rights(role, spec, **user)
    assert set(purposes) == wanted
    assert all(re.fullmatch(r"(publish|subscribe) [\w$.*>-]+", right) for right in purposes)
    assert all(re.fullmatch(r"[\w ,']{8,}", purpose) for purpose in purposes.values()), purposes
