"""Which file of a folder of credentials a command takes, and what it says when there is none for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnibus.broker.nats_access import Access
from omnibus.errors import ConfigError


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The folder of a host that runs a worker of stage 1 alone."""
    for role in ("worker", "supervisor"):
        (tmp_path / f"{role}-1.nk").write_text(f"# name: {role}-1\n# role: {role}\n# stages: 1 second\n")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "stage", "role", "remedy"),
    [
        ("status", None, "observer or operator", "observer"),
        ("observer", None, "observer or operator", "observer"),
        ("requests", None, "frontdoor or operator", "frontdoor"),
        ("chat", None, "frontdoor or operator", "frontdoor"),
        ("restart", None, "operator", "operator"),
        ("serve", None, "operator", "operator"),
        ("orchestrator", None, "orchestrator or operator", "orchestrator"),
        ("worker", "0", "worker of stage 0", "worker --stage 0"),
    ],
)
def test_role_and_remedy_are_named_when_a_folder_has_nothing_for_a_command(
    keys: Path, command: str, stage: str | None, role: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        Access(credentials=keys).described(command, stage)
    assert f"nothing is for the role {role} (there: supervisor-1.nk, worker-1.nk)" in refused.value.message
    assert f"`omnibus nats credentials {remedy} …`" in refused.value.message


@pytest.mark.parametrize("stage", ["1", "second", None])
def test_file_of_the_role_is_taken_when_the_folder_has_it(keys: Path, stage: str | None) -> None:
    assert Access(credentials=keys).described("worker", stage)["name"] == "worker-1"


@pytest.mark.parametrize("command", ["status", "restart", "chat", "frontdoor", "orchestrator", "dead"])
def test_the_operators_file_is_taken_when_there_is_none_with_less(keys: Path, command: str) -> None:
    (keys / "operator.nk").write_text("# name: boss\n# role: operator\n")
    assert Access(credentials=keys).described(command)["name"] == "boss"
