"""Files that a request names by their web address, fetched before it is accepted (docs/adr/0028)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from omnibus.errors import InvalidRequest, Overloaded, RequestError, RequestTooLarge
from omnibus.frontdoor.outbound.addresses import AddressRule
from omnibus.frontdoor.outbound.guarded_session import guarded_session, refusal_of
from omnibus.requests.request_files import MAX_FILES

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession
    from yarl import URL

MOST_REDIRECTS = 3
MOST_FETCHING = 8
"""Requests whose files are fetched at the same time. Invariant: few, as each may hold as many bytes as a body."""
MOST_WAITING = 64
"""Requests that wait for that, or are fetched; one more is refused."""
_USUAL_PORTS = {"http": 80, "https": 443}
_PIECE = 1 << 16
_AGENT = "omnibus"


class NotFetched(RequestError, code="media_not_fetched"):
    """The file at a web address could not be fetched."""


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file from the web."""

    data: bytes
    media_type: str
    """As its server says; what it is, decoding shows."""


Fetched = Mapping[str, WebFile]
"""Files by their address."""
NOTHING_FETCHED: Fetched = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a body names by its address."""

    url: str
    param: str
    """The field that names it."""
    is_stored: bool = False
    """Whether it is no address, but the id of a file that the caller keeps here."""


class NamingBody(Protocol):
    """A body that may name files by their addresses."""

    def named_files(self) -> Iterable[NamedFile]:
        """The files that the body names by web addresses."""

    def keep_fetched(self, files: Fetched) -> None:
        """Remember the fetched files, for the request that is made of the body."""


def is_web_address(url: str) -> bool:
    """Whether it begins as an address on the web does."""
    return url[:8].lower().startswith(("http://", "https://"))


class WebFiles:
    """Fetches files from hosts that an operator has named."""

    def __init__(self, domains: Iterable[str], rule: AddressRule, *, max_bytes: int, timeout: float) -> None:
        """`domains`: hosts such as `example.com`, `*.example.com` for all below, `*` for all; with `:PORT` where that is not the
        usual one. `max_bytes` is for all files of a request together, `timeout` seconds likewise."""
        self._domains, self._rule = tuple(one.lower() for one in domains), rule
        self._max_bytes, self._timeout = max_bytes, timeout
        self._turns, self._waiting = asyncio.Semaphore(MOST_FETCHING), 0

    async def fetch(self, body: NamingBody) -> None:
        """Have a body know the files that it names, each address fetched once.

        Raises InvalidRequest for an address that is not allowed, NotFetched for a file that does not come, RequestTooLarge, all
        naming the field, and Overloaded where too many requests wait.
        """
        named = {one.url: one for one in body.named_files() if not one.is_stored}
        if not named:
            return
        if len(named) > MAX_FILES:
            raise RequestTooLarge(f"a request may have {MAX_FILES} files", param=next(iter(named.values())).param)
        for one in named.values():
            self._allowed(one.url, one.param)
        if self._waiting >= MOST_WAITING:
            raise Overloaded("too many requests wait for files from the web; try again later")
        self._waiting += 1
        try:
            async with self._turns:
                body.keep_fetched(await self._all(list(named.values())))
        finally:
            self._waiting -= 1

    async def _all(self, named: list[NamedFile]) -> Fetched:
        files: dict[str, WebFile] = {}
        left, current = self._max_bytes, named[0]
        try:
            async with asyncio.timeout(self._timeout), guarded_session(self._rule, self._timeout) as session:
                for current in named:
                    files[current.url] = found = await self._one(session, current, left)
                    left -= len(found.data)
        except TimeoutError as error:
            raise NotFetched(f"it did not come within {self._timeout:g} s", param=current.param) from error
        return files

    async def _one(self, session: ClientSession, named: NamedFile, most: int) -> WebFile:
        import aiohttp  # noqa: PLC0415 as in guarded_session

        url = self._allowed(named.url, named.param)
        headers = {"Accept-Encoding": "identity", "User-Agent": _AGENT}
        try:
            for _ in range(MOST_REDIRECTS + 1):
                async with session.get(url, allow_redirects=False, headers=headers) as answer:
                    if "Location" not in answer.headers or not 300 <= answer.status < 400:
                        return await self._read(answer, named.param, most)
                    url = self._allowed(str(url.join(_url(answer.headers["Location"], named.param))), named.param)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, RequestError | TimeoutError):
                raise
            raise NotFetched(_reason(error), param=named.param) from error
        raise NotFetched(f"it has more than {MOST_REDIRECTS} redirects", param=named.param)

    async def _read(self, answer: ClientResponse, param: str, most: int) -> WebFile:
        if answer.status != 200:
            raise NotFetched(f"its server answered with the status {answer.status}", param=param)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise NotFetched("its server sent it compressed, which was not asked for", param=param)
        data = bytearray()
        if (answer.content_length or 0) <= most:
            async for piece in answer.content.iter_chunked(_PIECE):
                data += piece
                if len(data) > most:
                    break
            else:
                if not data:
                    raise NotFetched("the file is empty", param=param)
                return WebFile(bytes(data), answer.content_type)
        raise RequestTooLarge(f"the files of a request may have {self._max_bytes} bytes together", param=param)

    def _allowed(self, text: str, param: str) -> URL:
        """The address; raises InvalidRequest for one that nobody allowed."""
        if not self._domains:
            raise InvalidRequest(
                "web addresses are not fetched here: send a data: URL, or have the operator name the host "
                "(OMNIBUS_ALLOWED_MEDIA_DOMAINS)", param=param,
            )  # fmt: skip
        url = _url(text, param)
        host, port = (url.host or "").lower().rstrip("."), url.port
        if url.scheme not in _USUAL_PORTS or not host or url.user is not None or url.password is not None:
            raise InvalidRequest("it must be an http or https address without user and password", param=param)
        if not any(_matches(host, port, _USUAL_PORTS[url.scheme], domain) for domain in self._domains):
            raise InvalidRequest(
                f"files from {host[:80]}:{port} are not allowed: the operator names hosts in OMNIBUS_ALLOWED_MEDIA_DOMAINS",
                param=param,
            )
        return url


def _url(text: str, param: str) -> URL:
    from yarl import URL  # noqa: PLC0415 comes with aiohttp

    try:
        return URL(text)
    except ValueError as error:
        raise InvalidRequest(f"it is no web address: {error}", param=param) from error


def _matches(host: str, port: int | None, usual: int, domain: str) -> bool:
    """Whether a host is one of those that an entry of the setting means."""
    name, mark, wanted = domain.rpartition(":") if ":" in domain and not domain.endswith("]") else (domain, "", "")
    if port != (int(wanted) if mark and wanted.isdecimal() else usual):
        return False
    name = name.strip("[]")
    return name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))


def _reason(error: Exception) -> str:
    """Why a file could not be fetched; nothing about the network behind the server."""
    if (refusal := refusal_of(error)) is not None:
        return refusal
    if isinstance(error, ValueError):
        return "it is no web address"
    return "its server cannot be reached" if isinstance(error, OSError) else "its server did not send it whole"
