"""Ports to listen on."""

from __future__ import annotations

import socket

import pytest

from omnibus.broker import listening
from omnibus.broker.listening import LOOPBACK, free_port
from omnibus.errors import ConfigError

pytestmark = pytest.mark.unit


def test_free_port_is_none_that_an_outgoing_connection_may_take() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    assert ports <= set(range(20_000, 30_000))


def test_free_port_is_free_also_where_only_outgoing_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        taken = int(server.getsockname()[1])
        monkeypatch.setattr(listening, "_NOT_OUTGOING", [taken] * listening._TRIES)
        assert free_port() != taken


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on '192\.0\.2\.1'"):
        free_port("192.0.2.1")
