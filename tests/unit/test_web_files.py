"""Files of the web: which hosts and addresses are connected to, and what is refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from omnibus.errors import ConfigError, InvalidRequest, Overloaded, RequestError, RequestTooLarge
from omnibus.frontdoor.outbound import web_files
from omnibus.frontdoor.outbound.addresses import AddressRule
from omnibus.frontdoor.outbound.web_files import Fetched, NamedFile, NotFetched, WebFiles, is_web_address
from tests.support.waiting import eventually
from tests.support.web_server import body, endless, redirect, silence, web_server

pytestmark = pytest.mark.unit
LOOPBACK = ("127.0.0.0/8", "::1")
PICTURE = body(b"a picture", "image/png")


@dataclass
class Naming:
    """A body that names these addresses."""

    urls: tuple[str, ...]
    files: Fetched = field(default_factory=dict)

    def named_files(self) -> Iterable[NamedFile]:
        return [NamedFile(url, f"url[{number}]") for number, url in enumerate(self.urls)]

    def keep_fetched(self, files: Fetched) -> None:
        self.files = files


def fetcher(*domains: str, networks: Iterable[str] = LOOPBACK, **changed: Any) -> WebFiles:
    return WebFiles(domains, AddressRule.of(networks), **{"max_bytes": 1 << 20, "timeout": 5.0, **changed})


async def refused(files: WebFiles, *urls: str) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        await files.fetch(Naming(urls))
    return refusal.value


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "0.0.0.0"),
        *("168.63.129.16", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254"),
        *(
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "ff02::1",
            "fec0::1",
            "a name",
            "",
        ),
    ],
)
def test_no_address_is_permitted_when_it_is_not_a_public_one(address: str) -> None:
    assert not AddressRule().permits(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_an_address_is_permitted_when_it_is_public(address: str) -> None:
    assert AddressRule().permits(address)


def test_a_private_address_is_permitted_when_its_network_is_named() -> None:
    rule = AddressRule.of(["10.1.0.0/16", "fd12::/64"])
    assert [rule.permits(one) for one in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "10.2.0.1", "127.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="OMNIBUS_ALLOWED_NETWORKS"):
        AddressRule.of(["everywhere"])


async def test_a_file_comes_with_its_type_once_for_each_address() -> None:
    async with web_server({"/a": PICTURE, "/b": body(b"moves", "video/mp4")}) as server:
        host = f"127.0.0.1:{server.port}"
        naming = Naming((f"{server.url}/a", f"{server.url}/b", f"{server.url}/a"))
        await fetcher(host).fetch(naming)
    found = {url.rpartition("/")[2]: (file.data, file.media_type) for url, file in naming.files.items()}
    assert found == {"a": (b"a picture", "image/png"), "b": (b"moves", "video/mp4")}
    assert sorted(server.asked) == ["/a", "/b"]


async def test_nothing_is_fetched_when_no_host_is_allowed() -> None:
    refusal = await refused(fetcher(), "http://example.com/a.png")
    assert (type(refusal), refusal.param) == (InvalidRequest, "url[0]")
    assert "OMNIBUS_ALLOWED_MEDIA_DOMAINS" in refusal.message


@pytest.mark.parametrize(
    ("domain", "url", "is_allowed"),
    [
        ("example.com", "https://example.com/a", True),
        ("example.com", "https://EXAMPLE.com./a", True),
        ("example.com", "https://www.example.com/a", False),
        ("example.com", "https://example.com.evil.org/a", False),
        ("example.com", "https://evil.org/?example.com", False),
        ("example.com", "https://example.com:8443/a", False),
        ("example.com:8443", "https://example.com:8443/a", True),
        ("example.com", "https://user@example.com/a", False),
        ("*.example.com", "http://www.example.com/a", True),
        ("*.example.com", "http://example.com/a", False),
        ("*.example.com", "http://badexample.com/a", False),
        ("*", "http://anything.org/a", True),
        ("*", "http://anything.org:22/a", False),
        ("*", "ftp://anything.org/a", False),
        ("[::1]:8080", "http://[::1]:8080/a", True),
    ],
)  # fmt: skip
def test_a_host_is_allowed_when_an_entry_means_it(domain: str, url: str, is_allowed: bool) -> None:
    try:
        fetcher(domain)._allowed(url, "url")
    except InvalidRequest:
        assert not is_allowed
    else:
        assert is_allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1"])
async def test_a_private_address_is_refused_however_it_is_written(host: str) -> None:
    async with web_server({"/a": PICTURE}) as server:
        refusal = await refused(fetcher(f"*:{server.port}", networks=()), f"http://{host}:{server.port}/a")
    assert (type(refusal), server.asked) == (NotFetched, [])
    assert ("not a public one" in refusal.message) is (host != "2130706433")  # which is no address to aiohttp


async def test_a_name_is_refused_when_its_address_is_a_private_one_by_the_time_of_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that changes its address gains nothing: there is no earlier lookup to be trusted."""
    async with web_server({"/a": PICTURE}) as server:
        looked = list[str]()

        async def resolve(_self: object, host: str, port: int = 0, family: int = 0) -> list[Mapping[str, Any]]:
            looked.append(host)
            found = {"hostname": host, "host": "127.0.0.1", "port": server.port, "family": socket.AF_INET}
            return [{**found, "proto": 0, "flags": 0}]

        monkeypatch.setattr(aiohttp.DefaultResolver, "resolve", resolve)
        refusal = await refused(fetcher("rebound.example", networks=()), "http://rebound.example/a")
        assert (type(refusal), server.asked, looked) == (NotFetched, [], ["rebound.example"])
        naming = Naming(("http://rebound.example/a",))
        await fetcher("rebound.example").fetch(naming)
        assert [file.data for file in naming.files.values()] == [b"a picture"]


async def test_a_redirect_is_followed_when_its_host_is_allowed_and_refused_when_it_is_not() -> None:
    async with web_server({"/a": PICTURE}) as other:
        answers = {"/there": redirect(f"{other.url}/a"), "/round": redirect("/round"), "/out": redirect("ftp://x/")}
        async with web_server(answers) as server:
            naming, both = Naming((f"{server.url}/there",)), (f"127.0.0.1:{server.port}", f"127.0.0.1:{other.port}")
            await fetcher(*both).fetch(naming)
            elsewhere = await refused(fetcher(both[0]), f"{server.url}/there")
            round_ = await refused(fetcher(*both), f"{server.url}/round")
            out = await refused(fetcher(*both), f"{server.url}/out")
    assert [file.data for file in naming.files.values()] == [b"a picture"]
    assert (type(elsewhere), elsewhere.param, other.asked) == (InvalidRequest, "url[0]", ["/a"])
    assert "redirects" in round_.message
    assert "http or https" in out.message


async def test_files_are_refused_when_they_are_too_large_together_slow_missing_or_empty() -> None:
    answers = {"/endless": endless(), "/half": body(b"x" * 600, "image/png"), "/other": body(b"y" * 600, "image/png"),
               "/slow": silence, "/empty": body(b"", "image/png")}  # fmt: skip
    async with web_server(answers) as server:
        host = f"127.0.0.1:{server.port}"
        small = fetcher(host, max_bytes=1000, timeout=0.5)
        assert type(await refused(small, f"{server.url}/endless")) is RequestTooLarge
        both = await refused(small, f"{server.url}/half", f"{server.url}/other")
        assert (type(both), both.param) == (RequestTooLarge, "url[1]")
        slow = await refused(small, f"{server.url}/half", f"{server.url}/slow")
        assert (type(slow), slow.param, "within 0.5 s" in slow.message) == (NotFetched, "url[1]", True)
        assert "404" in (await refused(small, f"{server.url}/missing")).message
        assert "empty" in (await refused(small, f"{server.url}/empty")).message
    gone = await refused(small, f"{server.url}/half")
    assert (type(gone), gone.message) == (NotFetched, "its server cannot be reached")


async def test_a_request_is_refused_when_too_many_wait_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_files, "MOST_WAITING", 2)
    async with web_server({"/slow": silence}) as server:
        files = fetcher(f"127.0.0.1:{server.port}")
        waiting = [asyncio.create_task(files.fetch(Naming((f"{server.url}/slow",)))) for _ in range(2)]
        await eventually(lambda: len(server.asked) == 2, what="both are fetched")
        with pytest.raises(Overloaded):
            await files.fetch(Naming((f"{server.url}/slow",)))
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert files._waiting == 0


def test_web_addresses_are_told_from_other_texts() -> None:
    assert [is_web_address(url) for url in ("http://a", "HTTPS://a", "data:image/png;base64,", "ftp://a", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip
