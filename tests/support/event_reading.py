"""The events of a request, as a caller reads them that connects again whenever, and wherever, it likes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import httpx

Event = dict[str, Any]


async def events_of(http: httpx.AsyncClient, rid: str, after: str | None = None, **fields: str) -> AsyncIterator[Event]:
    """The events behind a cursor, until the request has ended; `fields` are further ones of the query.

    Raises AssertionError for a stream of another shape, and for an error in it.
    """
    query = {"stream": "true", **({} if after is None else {"starting_after": after}), **fields}
    async with http.stream("GET", f"/v1/requests/{rid}", params=query) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        assert response.headers["content-type"].startswith("text/event-stream")
        head: dict[str, str] = {}
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if (name, value) == ("data", "[DONE]"):
                return
            if name == "data":
                event = json.loads(value)
                assert "error" not in event, event
                assert (head.pop("id"), head.pop("event")) == (event["cursor"], event["type"])
                yield event
            elif name in ("id", "event"):
                head[name] = value
    raise AssertionError("the stream ended without its end")


async def some_of(http: httpx.AsyncClient, rid: str, count: int, after: str | None = None) -> list[Event]:
    """The first events, so many at most; then the caller leaves."""
    events = list[Event]()
    async with aclosing(events_of(http, rid, after)) as stream:
        async for event in stream:
            events.append(event)
            if len(events) == count:
                break
    return events


async def all_of(http: httpx.AsyncClient, rid: str, after: str | None = None, **fields: str) -> list[Event]:
    """The events to the last one."""
    return [event async for event in events_of(http, rid, after, **fields)]


def texts(events: Sequence[Event]) -> dict[tuple[str, str], str]:
    """The texts that the events make, by stage and field; the text itself has the field ""."""
    made: dict[tuple[str, str], str] = {}
    for event in events:
        if event["type"] in ("request.text.delta", "request.field.delta"):
            key = (event["stage"], event.get("field", ""))
            made[key] = made.get(key, "") + event["delta"]
    return made


def of_type(events: Sequence[Event], kind: str) -> list[Event]:
    """The events of a type, which is given without its first word."""
    return [event for event in events if event["type"] == f"request.{kind}"]


def check_whole(events: Sequence[Event], plain: dict[str, Any]) -> None:
    """Raises AssertionError unless the events are those of a request from its beginning to its end, and each is there once."""
    assert [len(of_type(events, kind)) for kind in ("status", "ended")] == [1, 1]
    assert (events[0]["type"], events[-1]["type"]) == ("request.status", "request.ended")
    assert events[-1]["request"] == plain
    assert sorted(json.dumps(event["output"]) for event in of_type(events, "output")) == sorted(
        json.dumps(output) for output in plain["outputs"]
    )
    made = texts(events)
    for output in plain["outputs"]:
        if output["modality"] == "text":
            assert made.get((output["stage"], ""), "") == output["items"][0]["text"]
    steps: dict[str, list[int]] = {}
    for event in of_type(events, "progress"):
        steps.setdefault(event["stage"], []).append(event["step"])
    assert all(sorted(set(numbers)) == numbers for numbers in steps.values())
    assert len({event["cursor"] for event in events}) == len(events)
