"""The examination of a port of this machine: whether it is free, and what answers there where it is not."""

from __future__ import annotations

import asyncio
import socket

import msgspec

ANSWER_TIMEOUT = 2.0
"""Seconds, at most, for the whole of an answer, however it comes."""
_MOST_READ = 1 << 20
"""Bytes that are read of a page to find a metric of ours; a stranger's page may have no end."""
_MOST_SHOWN = 100


class Finding(msgspec.Struct, frozen=True):
    """One thing that was examined, in words; of a fault they say what to do."""

    check: str
    ok: bool
    text: str


async def port_finding(name: str, host: str, port: int, *, is_needed: bool) -> Finding:
    """Examine the front door's `port` or a `metrics port`; a stranger on it is a fault where the port is needed.

    Takes ANSWER_TIMEOUT seconds at most; raises nothing.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return await _taken(name, host, port, str(error.strerror), is_needed=is_needed)
    return Finding(name, True, f"{port} on {host} is free")


async def _taken(name: str, host: str, port: int, why: str, *, is_needed: bool) -> Finding:
    where = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 it is compared
    address = f"{f'[{where}]' if ':' in where else where}:{port}"
    path, mark = ("/live", b"") if name == "port" else ("/metrics", b"omnibus_")
    is_ours, redirect = await _answer(f"http://{address}{path}", mark)
    if is_ours:
        return Finding(name, True, f"Omnibus answers at {address}")
    remedy = f"choose another with --{name.replace(' ', '-')}"
    return Finding(
        name, not is_needed,
        f"{port} on {host} cannot be had ({why}), and it is not Omnibus that answers{redirect}: {remedy}",
    )  # fmt: skip


async def _answer(url: str, mark: bytes) -> tuple[bool, str]:
    """Whether a page is there with the mark among its first bytes, and where it redirects to, in words, if it does."""
    from aiohttp import ClientError, ClientSession  # noqa: PLC0415 it is large, and most ports are free

    page = bytearray()
    try:
        async with (
            asyncio.timeout(ANSWER_TIMEOUT),
            ClientSession() as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if target := answer.headers.get("Location"):
                shown = "".join(one for one in target[:_MOST_SHOWN] if one.isprintable())
                return False, f", but a redirect ({answer.status}) to {shown}"
            while answer.status == 200 and mark not in page and len(page) < _MOST_READ:
                part = await answer.content.readany()
                if not part:
                    break
                page += part
            return answer.status == 200 and mark in page, ""
    except (ClientError, OSError, ValueError):  # also a deadline, and what is no HTTP
        return False, ""
