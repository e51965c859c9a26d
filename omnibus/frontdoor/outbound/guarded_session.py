"""HTTP connections to hosts that somebody outside has named, whose addresses are checked where they are connected to."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from omnibus.frontdoor.outbound.addresses import AddressRule

if TYPE_CHECKING:
    from aiohttp import ClientSession

CONNECT_TIMEOUT = 5.0
"""Seconds for one connection, the lookup of its host's name included."""


class AddressRefused(OSError):
    """The host's address is none that may be connected to."""


def refusal_of(error: Exception) -> str | None:
    """In words, that a connection failed as its address is none that may be connected to; None where it failed otherwise."""
    refused = error if isinstance(error, AddressRefused) else getattr(error, "os_error", None)
    if not isinstance(refused, AddressRefused):
        return None
    return f"{refused.args[0]}: the operator may allow its network (OMNIBUS_ALLOWED_NETWORKS)"


@asynccontextmanager
async def guarded_session(rule: AddressRule, timeout: float) -> AsyncIterator[ClientSession]:
    """A client whose connections go to addresses that `rule` permits, each request within `timeout` seconds.

    Invariant: the rule sees what the socket is connected to, not the answer of an earlier lookup, so that a name that changes
    in between gains nothing. No proxy of the environment is used, nor cookies.
    """
    import aiohttp  # noqa: PLC0415 few front doors need it, and it is large

    def permitted(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        if not rule.permits(address[0]):
            raise AddressRefused("the address of this host is not a public one")
        return socket.socket(family, kind, protocol)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=permitted, use_dns_cache=False, force_close=True),
        timeout=aiohttp.ClientTimeout(total=timeout, connect=min(CONNECT_TIMEOUT, timeout)),
        cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
    ) as session:  # fmt: skip
        yield session
