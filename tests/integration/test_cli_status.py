"""`omnibus status` knows whether the broker would tell of lost connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from omnibus.broker.discovery import Addresses, discover
from omnibus.broker.embedded import EmbeddedServer
from omnibus.client.cluster_view import reaches_system_account
from omnibus.settings import Settings

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        (lambda server: server.system_url, True),
        (lambda _server: None, False),
        (lambda server: server.system_url.replace("observer:", "observer:x"), False),
    ],
    ids=["lets us in", "not known", "wrong password"],
)
async def test_system_account_counts_only_when_it_lets_us_in(
    nats_server: EmbeddedServer, address: Callable[[EmbeddedServer], str | None], reached: bool
) -> None:
    assert await reaches_system_account(_found(address(nats_server))) is reached


async def test_no_warning_is_logged_when_the_system_account_lets_us_in(nats_server: EmbeddedServer) -> None:
    """Its user may hear of disconnects and do nothing else: what it is refused would be lines on the operator's screen."""
    with capture_logs() as said:
        assert await reaches_system_account(_found(nats_server.system_url))
    assert [event for event in said if event["log_level"] not in ("debug", "info")] == []


def _found(system_url: str | None) -> Addresses:
    return discover(Settings(nats_url="nats://127.0.0.1:1", nats_system_url=system_url))
