"""HTTP clients of servers that are killed: a connection that breaks is an error of the connection, at whichever moment."""

from __future__ import annotations

from typing import Any

import httpx


class BreakingTransport(httpx.AsyncHTTPTransport):
    """Raises httpx.ConnectError, too, for a connection that is gone between its opening and its first use.

    On uvloop such a connection has no socket any more, which anyio (4.16) asks for its address.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except AttributeError as error:
            if (error.obj, error.name) != (None, "getpeername"):
                raise
            raise httpx.ConnectError(str(error), request=request) from error


def breaking_http(url: str, **transport: Any) -> httpx.AsyncClient:
    """A client of a server that may be killed; `transport` are options of the transport."""
    return httpx.AsyncClient(base_url=url, transport=BreakingTransport(**transport))
