"""Batches of a front door: inputs, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI
from openai.types import Batch

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.wire import stores
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"
ENDS = ("completed", "failed", "expired", "cancelled")


def request(custom_id: str, body: Mapping[str, Any], url: str = CHAT) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def chat(model: str, custom_id: str, text: str, **more: Any) -> dict[str, Any]:
    return request(custom_id, {"model": model, "messages": [{"role": "user", "content": text}], **more})


async def begun(
    client: AsyncOpenAI, lines: Iterable[Mapping[str, Any]], endpoint: str = CHAT, window: str = "24h", **more: Any
) -> Batch:
    """A batch of these lines, queued."""
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window=window, **more  # type: ignore[arg-type] # ours, too
    )  # fmt: skip


async def ended(client: AsyncOpenAI, batch: Batch, within: float = 60.0) -> Batch:
    """The batch, once it has ended."""

    async def found() -> Batch | None:
        now = await client.batches.retrieve(batch.id)
        return now if now.status in ENDS else None

    end = await eventually(found, within, what="the batch ends")
    assert end is not None
    return end


@dataclass(frozen=True, slots=True)
class Answers:
    """The lines of both files."""

    good: list[dict[str, Any]]
    bad: list[dict[str, Any]]

    @property
    def by_id(self) -> dict[str, dict[str, Any]]:
        """By the id of the line; raises AssertionError for one with two answers."""
        lines = [*self.good, *self.bad]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines), "a line has two answers"
        return found


async def answers(client: AsyncOpenAI, batch: Batch) -> Answers:
    """What a batch that has ended wrote."""

    async def lines(file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(line) for line in (await client.files.content(file_id)).text.splitlines()]

    return Answers(await lines(batch.output_file_id), await lines(batch.error_file_id))


async def requests_of(connection: Connection, pipeline: str) -> list[str]:
    """Ids of all requests that a pipeline has had."""
    keys = await Bucket(connection, stores.requests_bucket(pipeline)).keys()
    return [key for key in keys if not key.startswith(stores.DEAD_LETTERS)]


async def left_of_batches(connection: Connection) -> int:
    """Messages of the queue of batches, and of their logs."""
    queue = await connection.stored_subjects(stores.BATCHES_STREAM, ">")
    logs = await connection.stored_subjects(f"OBJ_{stores.FILES_BUCKET}", f"$O.{stores.FILES_BUCKET}.C.>")
    return len(queue) + sum(".batch_" in subject for subject in logs)
