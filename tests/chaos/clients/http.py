"""Over HTTP: answers whole, and answers as server-sent events; retried under one Idempotency-Key."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from tests.chaos.clients.planned_request import PAUSE, Note, Wish
from tests.support import filmed_text
from tests.support.spoken_text import text_of_pcm

_ENDS = frozenset({499, 500, 504})
"""Statuses of errors that only an accepted request ends with."""
_KEY, _RID = "Idempotency-Key", "x-request-id"


async def ask(client: httpx.AsyncClient, note: Note, model: str) -> None:
    """Ask for the whole answer, until it comes or the client's time is over."""
    while note.patient:
        try:
            answer = await client.post(
                "/v1/chat/completions", json=_body(note.wish, model), headers={_KEY: note.wish.op},
                timeout=note.seconds_left,
            )  # fmt: skip
        except httpx.TransportError as error:
            note.broken(repr(error))
        else:
            if _notified(note, answer):
                return
        await asyncio.sleep(PAUSE)
    note.left("no answer came in time")


async def stream(
    client: httpx.AsyncClient, note: Note, model: str, answered: Callable[[int], None] = lambda _number: None
) -> None:
    """Follow the answer as it is made. A stream that breaks is asked for again, and begins anew.

    `answered` is called with the number of each segment whose answer is whole.
    """
    while note.patient:
        try:
            async with client.stream(
                "POST", "/v1/chat/completions", json={**_body(note.wish, model), "stream": True},
                headers={_KEY: note.wish.op}, timeout=note.seconds_left,
            ) as answer:  # fmt: skip
                if answer.status_code != httpx.codes.OK:
                    await answer.aread()
                    if _notified(note, answer):
                        return
                elif await _follow(note, answer, answered):
                    return
        except httpx.TransportError as error:
            note.broken(repr(error))
        await asyncio.sleep(PAUSE)
    note.left("no end came in time")


async def _follow(note: Note, answer: httpx.Response, answered: Callable[[int], None]) -> bool:
    """Note a stream's pieces; returns whether its end came."""
    note.accepted(answer.headers[_RID])
    said: list[str] = []
    try:
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            await asyncio.sleep(note.wish.pace)  # a client that takes its time
            if line == "data: [DONE]":
                note.ended("done", text="".join(said))
                return True
            chunk = msgspec.json.decode(line[len("data: ") :])
            if "error" in chunk:
                return _failed(note, chunk["error"])
            if "segment_finished" in chunk:
                answered(chunk["segment_finished"])
            for text in _texts(chunk, note.wish):
                said.append(text)
                note.delta(text)
    except httpx.TransportError as error:
        note.broken(repr(error), begun=True)
        return False
    note.broken("the stream ended without its end", begun=True)
    return False


def _texts(chunk: dict[str, Any], wish: Wish) -> list[str]:
    deltas = [choice["delta"] for choice in chunk["choices"]]
    if wish.is_spoken:
        return [_heard(delta["audio"]) for delta in deltas if delta.get("audio")]
    contents = (delta.get("content") for delta in deltas)
    return [content for content in contents if isinstance(content, str) and content]


def _notified(note: Note, answer: httpx.Response) -> bool:
    """Note a whole answer; whether it was an end."""
    if answer.status_code == httpx.codes.OK:
        note.accepted(answer.headers[_RID])
        message = answer.json()["choices"][0]["message"]
        if note.wish.is_spoken:
            note.ended("done", text=_heard(message["audio"]))
            return True
        content = message["content"]
        if note.wish.is_filmed:
            (film,) = content
            note.ended("done", text=_seen(film["file"]))
            return True
        parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
        note.ended("done", text="".join(parts))
        return True
    if answer.status_code in _ENDS:
        note.accepted(answer.headers[_RID])
    return _failed(note, answer.json()["error"], retryable=answer.headers.get("x-should-retry") == "true")


def _seen(file: dict[str, Any]) -> str:
    return filmed_text.text_of(base64.b64decode(file["file_data"].partition(",")[2]))


def _heard(audio: dict[str, Any]) -> str:
    return text_of_pcm(base64.b64decode(audio["data"]))


def _failed(note: Note, error: dict[str, Any], *, retryable: bool = False) -> bool:
    """A retryable refusal says nothing of the request: it may have been accepted, or not."""
    if retryable:
        note.broken(error.get("code"))
        return False
    note.ended("failed", code=str(error.get("code")))
    return True


def _body(wish: Wish, model: str) -> dict[str, object]:
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": wish.prompt}]}
    if wish.modalities is not None:
        body["modalities"] = wish.modalities
    if wish.is_spoken:
        body["audio"] = {"voice": "alloy", "format": "pcm16"}
    if wish.segments:
        body["resumable"] = True
    if wish.sampling:
        body["sampling_params"] = wish.sampling
    return body
