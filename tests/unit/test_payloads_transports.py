"""The places for payloads that a process opens, as its settings say."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from omnibus.errors import ConfigError
from omnibus.payloads import transports
from omnibus.payloads.memory import HostMemory, open_memory
from omnibus.payloads.transports import Transports
from omnibus.settings import Settings

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the machine's shared memory."""
    monkeypatch.setattr(transports, "open_memory", lambda pipeline, limit: open_memory(pipeline, limit, tmp_path))
    return tmp_path


def settings(**given: object) -> Settings:
    return Settings.model_validate({"shared_memory": "1MiB", **given})


def test_replica_has_memory_and_a_peer_where_an_address_is_set_and_nothing_stays(folder: Path) -> None:
    with Transports.open(settings(payload_address="127.0.0.1"), "p", asks_for_peer=False) as opened:
        assert isinstance(opened.memory, HostMemory)
        assert opened.peer is not None
        socket.create_connection((opened.peer.host, opened.peer.port)).close()
    assert list(folder.iterdir()) == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((opened.peer.host, opened.peer.port))


def test_replica_has_a_peer_on_loopback_when_only_an_edge_asks_for_one() -> None:
    with Transports.open(settings(), "p", asks_for_peer=True) as opened:
        assert opened.peer is not None
        assert opened.peer.host == "127.0.0.1"
    with Transports.open(settings(), "p", asks_for_peer=False) as opened:
        assert opened.peer is None


def test_replica_has_neither_when_it_may_take_no_memory(folder: Path) -> None:
    with Transports.open(settings(shared_memory=0, payload_address="127.0.0.1"), "p", asks_for_peer=True) as opened:
        assert (opened.memory, opened.peer) == (None, None)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("address", ["203.0.113.7", "0.0.0.0", "no such host"])
def test_start_fails_when_the_address_is_none_that_others_could_use(folder: Path, address: str) -> None:
    with (
        pytest.raises(ConfigError, match="--payload-address"),
        Transports.open(settings(payload_address=address), "p", asks_for_peer=False),
    ):
        pass
    assert list(folder.iterdir()) == []


def test_memory_is_done_without_when_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert open_memory("p", 1 << 20, tmp_path / "file") is None
    assert open_memory("p", 1 << 20, tmp_path / "missing") is None
    assert open_memory("p", 0, tmp_path) is None


def test_process_that_runs_no_stage_reads_outputs_only(folder: Path) -> None:
    assert Transports.of(settings()) == Transports()
    assert Transports.of(settings(output_store=f"file://{folder}")).outputs is not None
    with pytest.raises(ConfigError, match="OMNIBUS_OUTPUT_STORE"):
        Transports.of(settings(output_store="nowhere"))
