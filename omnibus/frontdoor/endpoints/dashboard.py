"""`GET /ui`: the dashboard, a page and its parts. They hold no data: the page asks the routes that everybody may ask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.error_answers import NoSuchRoute

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE = "index.html"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from another host, and no script but ours runs, whatever a prompt or a name holds."""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept by browsers, which ask whether it has changed
}
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _Asset:
    data: bytes
    media_type: str
    tag: str


@router.get("/ui", openapi_extra=RouteAccess.UI.stated)
async def get_page(http: HttpRequest) -> Response:
    """The page."""
    return _answer(http, _PAGE)


@router.get("/ui/{name}", openapi_extra=RouteAccess.UI.stated)
async def get_asset(name: str, http: HttpRequest) -> Response:
    """A script, a style or an image of it."""
    return _answer(http, name)


def _answer(http: HttpRequest, name: str) -> Response:
    asset = _assets().get(name)
    if asset is None:
        raise NoSuchRoute(f"the dashboard has no file {name[:80]!r}")
    headers = {**_HEADERS, "ETag": asset.tag}
    if http.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.data, headers=headers, media_type=asset.media_type)


@cache
def _assets() -> Mapping[str, _Asset]:
    """Every file of the folder, read once: the names are the whole list of what can be asked for."""
    found = {}
    for path in files("omnibus.frontdoor").joinpath("ui").iterdir():
        media_type = _TYPES.get(f".{path.name.rpartition('.')[2]}")
        if media_type is not None:
            data = path.read_bytes()
            found[path.name] = _Asset(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:20]}"')
    return found
