"""A request as bytes on a socket, and its answer: what a client sends is then exactly what is written here."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The events of a stream, which ends with the mark of its end."""
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        assert lines[-1] == b"[DONE]", self.body[-400:]
        return [json.loads(line) for line in lines[:-1]]

    def text(self) -> str:
        """The text of a streamed chat."""
        choices = [choice for event in self.events() for choice in event["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


def exchange(url: str, method: str, path: str, headers: str, body: bytes = b"", *, apart: bool = False) -> RawAnswer:
    """Send a request with these header lines, and its length where it has a body; `apart`: the body in a packet of its own."""
    address = urlsplit(url)
    assert address.hostname is not None
    lines = [f"{method} {address.path}{path} HTTP/1.1", f"Host: {address.netloc}", *filter(None, headers.splitlines())]
    if body and "transfer-encoding" not in headers.lower():
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join((*lines, "", "")).encode()
    with socket.create_connection((address.hostname, address.port or 80), timeout=120.0) as connection:
        for piece in (head, body) if apart else (head + body,):
            connection.sendall(piece)
        answer = HTTPResponse(connection, method=method)
        answer.begin()
        return RawAnswer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def chunked(body: bytes) -> bytes:
    """A body of unknown length."""
    return b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


def form(boundary: str, *parts: tuple[str, str | None, bytes]) -> bytes:
    """A body of the type multipart/form-data: the name of each field, of its file, and what it holds."""
    pieces = []
    for name, file, data in parts:
        named = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        kind = "\r\nContent-Type: application/octet-stream" if file else ""
        pieces.append(f"--{boundary}\r\nContent-Disposition: {named}{kind}\r\n\r\n".encode() + data + b"\r\n")
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()
