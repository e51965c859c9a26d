"""The examination of a port of this machine: whether it is free, and what answers there where it is not."""

from __future__ import annotations

import re
import socket
import time

import msgspec

ANSWER_TIMEOUT = 2.0
"""Seconds, at most, for the whole of an answer, however it comes."""
_MOST_READ = 1 << 20
"""Bytes that are read of a page to find a metric of ours; a stranger's page may have no end."""
_MOST_SHOWN = 100
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")
_LOCATION = re.compile(rb"^location:[ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE)


class Finding(msgspec.Struct, frozen=True):
    """One thing that was examined, in words; of a fault they say what to do."""

    check: str
    ok: bool
    text: str


def port_finding(name: str, host: str, port: int, *, is_needed: bool) -> Finding:
    """Examine the front door's `port` or a `metrics port`; a stranger on it is a fault where the port is needed.

    Takes ANSWER_TIMEOUT seconds at most; raises nothing.
    """
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return _taken(name, host, port, str(error.strerror), is_needed=is_needed)
    return Finding(name, True, f"{port} on {host} is free")


def _taken(name: str, host: str, port: int, why: str, *, is_needed: bool) -> Finding:
    where = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 it is compared
    path, mark = ("/live", b"") if name == "port" else ("/metrics", b"omnibus_")
    status, head, body = _parts(_page(where, port, path, mark))
    if status == 200 and mark in body:
        return Finding(name, True, f"Omnibus answers at {f'[{where}]' if ':' in where else where}:{port}")
    remedy = f"choose another with --{name.replace(' ', '-')}"
    return Finding(
        name, not is_needed,
        f"{port} on {host} cannot be had ({why}), and it is not Omnibus that answers{_redirection(status, head)}: {remedy}",
    )  # fmt: skip


def _page(where: str, port: int, path: str, mark: bytes) -> bytes:
    """Read what is answered to a GET, until its body has the mark, it ends, its time is over, or it is too large.

    The bytes as they came, with their head. Redirects are not followed, and no proxy is asked.
    """
    until, page = time.monotonic() + ANSWER_TIMEOUT, bytearray()
    try:
        with socket.socket(_family(where)) as caller:
            caller.settimeout(ANSWER_TIMEOUT)
            caller.connect((where, port))
            caller.sendall(f"GET {path} HTTP/1.0\r\nHost: {where}:{port}\r\n\r\n".encode())
            while len(page) < _MOST_READ and (left := until - time.monotonic()) > 0:
                caller.settimeout(left)
                part = caller.recv(_MOST_READ - len(page))
                head_length = page.find(b"\r\n\r\n")
                page += part
                if not part or (head_length >= 0 and page.find(mark, head_length) >= 0):
                    break
    except OSError:  # also a deadline: what has come by then counts
        pass
    return bytes(page)


def _parts(page: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer; 0 where it is no HTTP. Pure."""
    head, _, body = page.partition(b"\r\n\r\n")
    found = _STATUS.match(head + b"\r\n")
    return int(found[1]) if found else 0, head, body


def _redirection(status: int, head: bytes) -> str:
    location = _LOCATION.search(head)
    if not 300 <= status < 400 or location is None:
        return ""
    target = "".join(one for one in location[1].decode("latin-1") if one.isprintable())
    return f", but a redirect ({status}) to {target[:_MOST_SHOWN]}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
