"""`omnibus doctor` under the configuration for production."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omnibus.broker.listening import free_port
from tests.support.guarded import Guarded, guarded_server
from tests.support.served import omnibus
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_server(tmp_path_factory.mktemp("guarded")) as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIBUS_STATE_DIR", str(made.folder / "none"))
        deployed = omnibus("pipeline", "deploy", str(made.file), "--credentials", str(made.keys), nats=made.url)
        assert deployed.returncode == 0, deployed.stderr
        yield made


def _examine(guarded: Guarded, *words: str) -> tuple[int, dict[str, Any]]:
    done = omnibus("doctor", "--json", *words, nats=guarded.url)
    return done.returncode, json.loads(done.stdout)


def _faults(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in found["findings"] if not finding["ok"]]


@pytest.mark.parametrize(
    "user", ["operator", "orchestrator", "frontdoor", "worker-0", "worker-1", "supervisor-1", "observer"]
)
def test_doctor_finds_no_fault_when_a_role_has_what_the_table_gives_it(guarded: Guarded, user: str) -> None:
    code, found = _examine(guarded, "--credentials", str(guarded.keys / f"{user}.nk"))
    assert (code, _faults(found)) == (0, [])
    by_check = {finding["check"]: finding["text"] for finding in found["findings"]}
    machine = {"open files", "shared memory", "GPUs", "port", "certificates"}
    assert set(by_check) == machine | {"connection", "server", "clock", "credentials", "permissions", "streams"}
    assert user in by_check["credentials"]


async def test_doctor_names_right_purpose_and_command_when_a_permission_is_missing(guarded: Guarded) -> None:
    before = guarded.config.read_text()
    head, own = before.split("# worker-1\n")
    right = "$JS.API.CONSUMER.MSG.NEXT.OMNI_guarded_WORK.stage-1-interactive"
    lines = own.splitlines(keepends=True)
    lines.pop(next(index for index, line in enumerate(lines) if right in line))
    guarded.reload(f"{head}# worker-1\n{''.join(lines)}")
    try:
        words = ("doctor", "--credentials", str(guarded.keys / "worker-1.nk"), "-p", str(guarded.file))

        def faulty() -> list[str]:
            lines = omnibus(*words, nats=guarded.url).stdout.splitlines()
            return [line for line in lines if line.startswith("FAULT")]

        faults = await eventually(faulty, timeout=30, what="the server has taken its configuration over")
        assert len(faults) == 1
        assert f"may not publish {right}" in faults[0]
        assert "take tasks of stage 1 from the lane interactive" in faults[0]
        remedy = f"omnibus nats credentials worker --pipeline {guarded.file} --stage 1 --name worker-1"
        assert f"`{remedy} && nats-server --signal reload`" in faults[0]
        again = omnibus(*remedy.split()[1:], "--dir", str(guarded.keys), nats="")
        assert again.returncode == 0, again.stderr
        assert guarded.config.read_text() == before
    finally:
        guarded.reload(before)


def test_doctor_says_what_to_do_when_the_role_is_for_something_else(guarded: Guarded) -> None:
    code, found = _examine(guarded, "--credentials", str(guarded.keys / "observer.nk"), "--role", "frontdoor")
    assert code == 1
    texts = [finding["text"] for finding in _faults(found)]
    assert any(
        "write the records of requests" in text and "omnibus nats credentials frontdoor" in text for text in texts
    )


def test_doctor_asks_for_the_role_when_the_folder_has_neither_an_operator_nor_an_observer(
    guarded: Guarded, tmp_path: Path
) -> None:
    for name in ("ca.pem", "worker-1.nk", "worker-1.pem", "worker-1.key"):
        (tmp_path / name).write_bytes((guarded.keys / name).read_bytes())
    code, found = _examine(guarded, "--credentials", str(tmp_path))
    assert code == 1
    (fault,) = _faults(found)
    assert "nothing is for the role operator or observer (there: worker-1.nk)" in fault["text"]
    assert "--role worker --stage 0" in fault["text"]
    code, found = _examine(guarded, "--credentials", str(tmp_path), "--role", "worker", "--stage", "1")
    assert (code, _faults(found)) == (0, [])


def test_doctor_says_so_when_the_credentials_are_not_accepted(guarded: Guarded, tmp_path: Path) -> None:
    strangers = tmp_path / "keys"
    made = omnibus("nats", "credentials", "operator", "-p", str(guarded.file), "--dir", str(strangers), nats="")
    assert made.returncode == 0, made.stderr
    for name in ("ca.pem", "worker-0.pem", "worker-0.key"):  # all but the nkey is right
        (strangers / name.replace("worker-0", "operator")).write_bytes((guarded.keys / name).read_bytes())
    code, found = _examine(guarded, "--credentials", str(strangers))
    assert code == 1
    (fault,) = _faults(found)
    assert fault["check"] == "connection"
    assert "does not accept these credentials" in fault["text"]


def test_doctor_says_so_when_there_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIBUS_STATE_DIR", str(tmp_path))
    url = f"nats://127.0.0.1:{free_port()}"
    done = omnibus("doctor", nats=url)
    assert done.returncode == 1
    fault = next(line for line in done.stdout.splitlines() if line.startswith("FAULT"))
    assert url in fault
    assert "Traceback" not in done.stdout + done.stderr
