"""Pages of other sites: what a browser sends on their behalf is refused where it would change something.

Any page may have its visitor's browser post a form to any address, `http://localhost:8000/pause` among them; only the answer
stays hidden from it. A browser says so: in `Sec-Fetch-Site` to https and to this machine
(https://www.w3.org/TR/fetch-metadata/), in `Origin` elsewhere (https://www.rfc-editor.org/rfc/rfc6454). Programs send neither.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from omnibus.errors import Forbidden, OmnibusError
from omnibus.frontdoor.error_answers import refuse
from omnibus.frontdoor.headers import sent_header

_CHANGES_NOTHING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods by which a page of another site learns and changes nothing: its browser keeps the answers from it."""
_OWN_SITE = frozenset({"same-origin", "none"})
"""Values of `Sec-Fetch-Site` for a page of this very server, and for what the user began: an address typed in."""
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class CrossOrigin(Forbidden, code="cross_origin"):
    """A page of another origin may not do this."""


class UnknownHost(Forbidden, code="unknown_host"):
    """This server is not known by that name."""


class PageOrigins:
    """Refuses what the pages of other origins have a browser send: requests that may change something, and WebSockets.

    An origin is this server's own where it is the one that the request came to (`Host`, or `X-Forwarded-Host` of a proxy, which
    no page can set for another site), or that of the public address; the allowed ones are refused nothing.

    `checks_host` says whether the server must be known by the name it was asked by. Without keys, on loopback, a page could have
    its own name lead to this machine after it was loaded (DNS rebinding), and would be of the same origin then. Known are
    addresses, names without a dot, those under localhost, and the hosts of the public address and of the allowed origins.
    """

    def __init__(
        self, app: ASGIApp, allowed: Collection[str], public_url: str = "", *, checks_host: Callable[[], bool]
    ) -> None:
        self._app = app
        self._allows_all, self._checks_host = "*" in allowed, checks_host
        self._trusted = {origin.rstrip("/").lower() for origin in allowed}
        if public_url:
            public = urlsplit(public_url)
            self._trusted.add(f"{public.scheme}://{public.netloc}".lower())
        self._hosts = {urlsplit(origin).hostname for origin in self._trusted}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not self._allows_all:
            refusal = self._check(scope)
            if refusal is not None:
                await refuse(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> OmnibusError | None:
        host = sent_header(scope, "host") or ""
        if self._checks_host() and not self._is_known(host):
            return UnknownHost(
                f"this server is not known as {host}: without API keys it answers on this machine's own names alone, as a page "
                "could have any other name lead here. Name it in OMNIBUS_PUBLIC_URL, or make a key (`omnibus keys add NAME`)"
            )
        if scope.get("method") in _CHANGES_NOTHING:
            return None
        origin, site = sent_header(scope, "origin"), sent_header(scope, "sec-fetch-site")
        if site in _OWN_SITE or (site is None and origin is None):
            return None
        if origin is not None and (origin in self._trusted or (site is None and _is_own(origin, host, scope))):
            return None
        return CrossOrigin(
            f"a page of {origin or 'another site'} had this sent, and pages of other origins may change nothing here: name its "
            "origin in OMNIBUS_ALLOWED_ORIGINS, or, where it is this server's own behind a proxy, in OMNIBUS_PUBLIC_URL"
        )

    def _is_known(self, host: str) -> bool:
        name = _name(host)
        return name in self._hosts or _is_local(name)


def _is_own(origin: str, host: str, scope: Scope) -> bool:
    """Whether a page is of the host that it asks, for browsers that do not say so themselves."""
    scheme, _, place = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme, "")
    forwarded = (sent_header(scope, "x-forwarded-host") or "").partition(",")[0].strip()
    return bool(place) and place in {one.lower().removesuffix(port) for one in (host, forwarded)}


def _name(host: str) -> str:
    """The host of a `Host` header, in lower case, without its port."""
    end = host.rfind("]") + 1 if host.startswith("[") else host.find(":")
    return (host if end <= 0 else host[:end]).strip("[]").rstrip(".").lower()


@lru_cache(maxsize=256)
def _is_local(name: str) -> bool:
    """Whether a name is an address, or one that no server of names outside can have lead here."""
    if "." not in name and ":" not in name:
        return True
    try:
        ip_address(name)
    except ValueError:
        return name.endswith(".localhost")
    return True
