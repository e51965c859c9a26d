"""Access: which addresses ask for an API key, and of which role."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from omnibus.errors import Forbidden, OmnibusError, Unauthorized
from omnibus.frontdoor.api_keys import KeyTable, Role
from omnibus.frontdoor.error_answers import error_response

ASSETS = "/docs-assets"
"""Scripts and styles of the documentation: files of an open-source package, which tell nothing and need no key."""
KEYLESS = frozenset({"/live", "/health", "/ready", "/version"})
"""Addresses that never ask for a key."""
PAGES = {
    "metrics": frozenset({"/metrics"}),
    "docs": frozenset({"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}),
}
"""Addresses that ask for a key where an operator closes them: metrics for an admin's, the documentation for any."""
POLICY_VIOLATION = 1008
"""The code that closes a websocket which shows no right key."""


class ApiKeys:
    """Refuses requests and websockets without the key that their address asks for, before their body is read.

    Every address asks for one, once there are keys; KEYLESS do not, nor do PAGES that are not closed. `admin_paths` ask for an
    admin's. The caller's tenant is in `request.state.tenant`, None without a key, and its role in `request.state.role`.
    """

    def __init__(self, app: ASGIApp, keys: KeyTable, closed: Collection[str], admin_paths: Collection[str]) -> None:
        self._app, self._keys = app, keys
        self._closed = frozenset[str]().union(*(PAGES[page] for page in closed))
        self._open = KEYLESS.union(*PAGES.values()) - self._closed
        self._admin = PAGES["metrics"].union(admin_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            refusal = self._check(scope)
            if refusal is not None:
                await _refuse(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> OmnibusError | None:
        """Let the caller be known in the scope; the error for one that may not go on."""
        state, path = scope.setdefault("state", {}), scope["path"]
        state["tenant"], state["role"] = None, Role.USER
        if path in self._open or path.startswith(f"{ASSETS}/") or not (self._keys.asks() or path in self._closed):
            return None
        key = self._keys.find(bearer(Headers(scope=scope).get("authorization")))
        if key is None:
            return Unauthorized()
        if path in self._admin and key.role is not Role.ADMIN:
            return Forbidden("this needs a key of the role admin")
        state["tenant"], state["role"] = key.tenant, key.role
        return None


def bearer(authorization: str | None) -> str:
    """The token of an `Authorization: Bearer …` header, "" when there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _refuse(error: OmnibusError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":  # closed before it is accepted: the server answers with 403
        await receive()
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.message})
        return
    await error_response(error)(scope, receive, send)
