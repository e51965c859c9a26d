"""Sessions over HTTP go on when the front door that serves them dies, or the orchestrator: real processes, killed with -9."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.listening import free_port
from omnibus.registry.deployed_pipelines import deploy_pipeline
from tests.integration.test_open_input_deaths import process
from tests.support.served import start
from tests.support.sessions import pipeline_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
PATIENCE = 60.0
KEY = {"Idempotency-Key": "the session"}


class HttpFollower:
    """The answers of a session that one front door streams."""

    def __init__(self, url: str, model: str) -> None:
        self.rid = ""
        self.answers = [""]
        self.ended = False
        self.task = asyncio.create_task(self._follow(url, model))

    async def _follow(self, url: str, model: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True, "resumable": True}
        async with (
            httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
            client.stream("POST", "/v1/chat/completions", json=body, headers=KEY) as answer,
        ):
            assert answer.status_code == httpx.codes.OK, await answer.aread()
            self.rid = answer.headers["x-request-id"]
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    self.ended = True
                elif line.startswith("data: "):
                    self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, chunk: dict[str, object]) -> None:
        if (number := chunk.get("segment_finished")) is not None:
            assert number == len(self.answers) - 1
            self.answers.append("")
        for choice in msgspec.convert(chunk.get("choices", []), list[dict[str, object]]):
            self.answers[-1] += str(msgspec.convert(choice["delta"], dict[str, object]).get("content") or "")

    async def until(self, *answers: str) -> None:
        await eventually(lambda: self.answers == [*answers, ""], PATIENCE, what=f"{answers}, not {self.answers}")


@contextmanager
def running(*words: str, nats: str, folder: Path) -> Iterator[None]:
    """A command of ours, killed at the end."""
    command = start(*words, nats=nats, log=folder / "log")
    try:
        yield
    finally:
        command.kill()
        command.wait(10.0)


async def is_ready(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"{url}/live", timeout=5.0)).is_success
        except httpx.TransportError:
            return False


async def send(url: str, rid: str, model: str, number: int, text: str, *, end: bool = False) -> None:
    body = {"number": number, "prompt": text, "end": end, "model": model}
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        answer = await client.post(f"{url}/v1/requests/{rid}/input", json=body)
    assert (answer.status_code, answer.json().get("number")) == (200, number), answer.text


async def test_session_goes_on_through_another_front_door_and_orchestrator_when_both_die(
    connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    spec = pipeline_of(pipeline, deadline=2 * PATIENCE, input_timeout=PATIENCE)
    await ensure_layout(connection, layout_of(spec))
    await deploy_pipeline(connection, spec)
    first, second = (f"http://127.0.0.1:{free_port()}" for _ in range(2))

    def door(url: str) -> tuple[str, ...]:
        return ("frontdoor", "--port", url.rpartition(":")[2], "--state-dir", str(tmp_path))

    orchestrator = ("orchestrator", "--pipeline", spec.name, "--state-dir", str(tmp_path))
    described = msgspec.json.encode(spec).decode()
    with running(*door(second), nats=connection.url, folder=tmp_path):
        async with process("replica_process", connection.url, "w1", described):
            with running(*orchestrator, nats=connection.url, folder=tmp_path):
                with running(*door(first), nats=connection.url, folder=tmp_path):
                    await eventually(lambda: is_ready(first), PATIENCE)
                    heard = HttpFollower(first, spec.name)
                    await heard.until("HELLO ")
                    await send(first, heard.rid, spec.name, 1, "one")
                    await heard.until("HELLO ", "ONE ")
                assert isinstance((await asyncio.gather(heard.task, return_exceptions=True))[0], httpx.TransportError)
                assert not heard.ended
                await eventually(lambda: is_ready(second), PATIENCE)
                again = HttpFollower(second, spec.name)
                await send(second, heard.rid, spec.name, 1, "one")  # whose answer its sender may not have had
                await send(second, heard.rid, spec.name, 2, "two")
                await again.until("HELLO ", "ONE ", "TWO ")
                assert again.rid == heard.rid
            await send(second, heard.rid, spec.name, 3, "three")
            await again.until("HELLO ", "ONE ", "TWO ", "THREE ")
            with running(*orchestrator, nats=connection.url, folder=tmp_path):
                await send(second, heard.rid, spec.name, 4, "four", end=True)
                await asyncio.wait_for(again.task, PATIENCE)
    assert again.ended
    assert again.answers == ["HELLO ", "ONE ", "TWO ", "THREE ", "FOUR ", ""]
