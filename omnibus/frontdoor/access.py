"""Access: every route states whether it asks for an API key, and of which role."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import IntEnum, auto

from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from omnibus.errors import Forbidden, OmnibusError, Unauthorized
from omnibus.frontdoor.api_keys import KeyTable, Role
from omnibus.frontdoor.error_answers import refuse
from omnibus.frontdoor.headers import sent_header
from omnibus.frontdoor.retention import KEEP

ASSETS = "/docs-assets"
"""Scripts and styles of the documentation: files of an open-source package, which tell nothing and need no key."""
KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""Beginning of the subprotocol that brings a key, as OpenAI's WebSockets have it."""
_STATED = "x-access"


class RouteAccess(IntEnum):
    """The key that a route asks for, once there are keys; a later one asks for more."""

    OPEN = auto()
    """None, ever."""
    DOCS = auto()
    """Any, where an operator closes the documentation."""
    UI = auto()
    """Any, where an operator closes the dashboard's page; what it shows has its own access."""
    METRICS = auto()
    """An admin's, where an operator closes the metrics."""
    USER = auto()
    """Any."""
    ADMIN = auto()
    """An admin's."""

    @property
    def stated(self) -> dict[str, str]:
        """The `openapi_extra` by which a route states its access; it stands in the documentation, too."""
        return {_STATED: self.name.lower()}


_PAGES = {
    ASSETS: RouteAccess.OPEN,
    **dict.fromkeys(("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"), RouteAccess.DOCS),
    "/v1/realtime": RouteAccess.USER,
}
"""Routes that FastAPI makes, and WebSockets, which have no `openapi_extra`."""
_StatedRoute = Route | Mount | WebSocketRoute


class AccessTable:
    """The access of every address: the strictest that a route there states, and USER where there is none."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        """Raises TypeError for a route that states none: a route that forgets it must not open by itself."""
        stated = [(route, stated_access(route)) for route in routes if isinstance(route, _StatedRoute)]
        self._patterns = [(route.path_regex, access) for route, access in stated]
        self._exact: dict[str, RouteAccess] = {}
        for route, access in stated:
            self._exact[route.path] = max(access, self._exact.get(route.path, access), *self._matching(route.path))

    def access(self, path: str) -> RouteAccess:
        """The access of this address.

        Invariant: one that a route takes has that route's. Patterns are asked where no address is the very same, as they take
        more than that: with a line feed at its end, `/pause` is served, too.
        """
        return self._exact.get(path) or max(self._matching(path), default=RouteAccess.USER)

    def _matching(self, path: str) -> list[RouteAccess]:
        return [access for pattern, access in self._patterns if pattern.match(path)]


def stated_access(route: _StatedRoute) -> RouteAccess:
    """The access that a route states; raises TypeError for none."""
    extra = getattr(route, "openapi_extra", None) or {}
    found = RouteAccess.__members__.get(str(extra.get(_STATED)).upper(), _PAGES.get(route.path))
    if found is None:
        raise TypeError(
            f"the route {route.path!r} states no access: give it openapi_extra=RouteAccess.USER.stated, or another"
        )
    return found


class ApiKeys:
    """Refuses requests and websockets without the key that their address asks for, before their body is read.

    The caller's tenant is in `request.state.tenant`, None without a key, and its role in `request.state.role`.
    """

    def __init__(self, app: ASGIApp, keys: KeyTable, closed: Collection[str], table: AccessTable) -> None:
        """`closed` names the pages that an operator closes: `docs`, `ui`, `metrics`."""
        self._app, self._keys, self._table = app, keys, table
        self._closed = {RouteAccess[page.upper()] for page in closed}
        self._open = {RouteAccess.OPEN, RouteAccess.DOCS, RouteAccess.UI, RouteAccess.METRICS} - self._closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            refusal = self._check(scope)
            if refusal is not None:
                await refuse(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> OmnibusError | None:
        """Let the caller be known in the scope; the error for one that may not go on."""
        state, access = scope.setdefault("state", {}), self._table.access(scope["path"])
        state["tenant"], state["role"] = None, Role.USER
        if access in self._open or not (self._keys.asks() or access in self._closed):
            return None
        key = self._keys.find(bearer(sent_header(scope, "authorization")) or subprotocol_key(scope))
        if key is None:
            return Unauthorized()
        if access in (RouteAccess.METRICS, RouteAccess.ADMIN) and key.role is not Role.ADMIN:
            return Forbidden("this needs a key of the role admin")
        state["tenant"], state["role"], state[KEEP] = key.tenant, key.role, key.keep
        return None


def bearer(authorization: str | None) -> str:
    """The token of an `Authorization: Bearer …` header, "" when there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def subprotocol_key(scope: Scope) -> str:
    """The key among the subprotocols that a WebSocket offers, "" when there is none: browsers can send no headers with one."""
    offered = (name for name in scope.get("subprotocols", ()) if name.startswith(KEY_SUBPROTOCOL))
    return next(offered, "").removeprefix(KEY_SUBPROTOCOL)
