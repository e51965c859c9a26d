"""Two no-op tasks in a row on taskiq over Redis streams: a durable queue that acknowledges what was done.

    producer ──► Redis ──► worker, stage 0 ──► Redis ──► worker, stage 1 ──► Redis pub/sub ──► producer

Each stage has a queue and a worker process of its own; the answer comes by pub/sub, for taskiq's own results are polled for.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
from taskiq_redis import RedisStreamBroker

URL_VARIABLE = "BENCH_REDIS_URL"
START_TIMEOUT = 30.0
_ANSWERS = "answers"
_URL = os.environ.get(URL_VARIABLE, "redis://127.0.0.1:6379")

first = RedisStreamBroker(_URL, queue_name="first", consumer_group_name="first", xread_block=1000)
second = RedisStreamBroker(_URL, queue_name="second", consumer_group_name="second", xread_block=1000)
_client = redis.asyncio.Redis.from_url(_URL)


@second.task
async def stage_1(rid: str, payload: str) -> None:
    """Answer the producer."""
    await _client.publish(_ANSWERS, f"{rid} {payload}")


@first.task
async def stage_0(rid: str, payload: str) -> None:
    """Hand on to the second stage."""
    await stage_1.kiq(rid, payload)


class TaskiqPipeline:
    """The running queue, seen from its producer."""

    def __init__(self, payload: str, pids: tuple[int, ...]) -> None:
        self._payload = payload
        self.pids = pids
        """The workers, each the head of a family."""
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def ask(self) -> None:
        """Send one request through both stages and wait for its answer."""
        rid = uuid.uuid4().hex
        answered = self._waiting[rid] = asyncio.get_running_loop().create_future()
        await stage_0.kiq(rid, self._payload)
        await answered

    async def receive(self, pubsub: redis.asyncio.client.PubSub) -> None:
        """Hand every answer to its caller, until cancelled."""
        async for message in pubsub.listen():
            if message["type"] == "message":
                self._waiting.pop(message["data"].split(b" ", 1)[0].decode()).set_result(None)


@asynccontextmanager
async def pipeline(payload: str) -> AsyncIterator[TaskiqPipeline]:
    """Start both workers, yield the producer's side when a request has passed, and end them.

    URL_VARIABLE names the server, in this process too, before this module is imported.
    """
    await first.startup()
    await second.startup()
    workers = [_worker("first"), _worker("second")]
    pubsub = _client.pubsub()
    await pubsub.subscribe(_ANSWERS)
    side = TaskiqPipeline(payload, tuple(worker.pid for worker in workers))
    receiver = asyncio.create_task(side.receive(pubsub), name="bench.taskiq.receive")
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await side.ask()
        yield side
    finally:
        receiver.cancel()
        await asyncio.gather(receiver, return_exceptions=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            await asyncio.to_thread(worker.wait)
        await pubsub.aclose()
        await first.shutdown()
        await second.shutdown()
        await _client.aclose()


def _worker(name: str) -> subprocess.Popen[bytes]:
    words = ("taskiq", "worker", f"bench.peers.taskiq_queue:{name}", "--workers", "1", "--max-async-tasks", "64")
    return subprocess.Popen((sys.executable, "-m", *words, "--log-level", "ERROR"), stdin=subprocess.DEVNULL)
