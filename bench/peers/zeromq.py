"""The yardstick of bench.hops: two no-op stages over ZeroMQ and MessagePack, nothing durable.

    producer ──► orchestrator ──► worker 0 ──► orchestrator ──► worker 1 ──► orchestrator ──► producer

Every box is its own process with an asyncio loop (uvloop), every arrow a PUSH/PULL pair over TCP on loopback. A message is a
MessagePack map of the request's id, the next stage and the payload, decoded and encoded at every hop, as it is in Omnibus.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgpack
import uvloop
import zmq
import zmq.asyncio

from omnibus.child_process import ChildProcess, start_child

STAGES = 2
START_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of the orchestrator's sockets, all bound by it."""

    inbox: int
    """PULL: requests and results."""
    results: int
    """PUSH: answers to the producer."""
    stages: tuple[int, ...]
    """PUSH: tasks, one socket a stage."""

    @classmethod
    def free(cls) -> Ports:
        inbox, results, *stages = _free_ports(2 + STAGES)
        return cls(inbox, results, tuple(stages))

    @classmethod
    def parse(cls, numbers: Sequence[str]) -> Ports:
        inbox, results, *stages = map(int, numbers)
        return cls(inbox, results, tuple(stages))

    def words(self) -> list[str]:
        return [str(port) for port in (self.inbox, self.results, *self.stages)]


class ZeroMqPipeline:
    """The running baseline, seen from its producer."""

    def __init__(self, context: zmq.asyncio.Context, ports: Ports, payload: bytes, pids: tuple[int, ...]) -> None:
        self.pids = pids
        """The orchestrator and the workers."""
        self._push = context.socket(zmq.PUSH)
        self._push.connect(_url(ports.inbox))
        self._pull = context.socket(zmq.PULL)
        self._pull.connect(_url(ports.results))
        self._payload = payload
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def ask(self) -> None:
        """Send one request through both stages and wait for its answer."""
        rid = uuid.uuid4().hex
        answered = self._waiting[rid] = asyncio.get_running_loop().create_future()
        await self._push.send(msgpack.packb({"rid": rid, "stage": -1, "payload": self._payload}))
        await answered

    async def receive(self) -> None:
        """Hand every answer to its caller, until cancelled."""
        while True:
            answer = msgpack.unpackb(await self._pull.recv())
            self._waiting.pop(answer["rid"]).set_result(None)


@contextlib.asynccontextmanager
async def pipeline(payload: bytes) -> AsyncIterator[ZeroMqPipeline]:
    """Start the three processes, yield the producer's side when a request has passed, and end them."""
    ports, context = Ports.free(), zmq.asyncio.Context()
    roles = ["orchestrator", *(f"worker-{stage}" for stage in range(STAGES))]
    processes = [await _start(role, ports) for role in roles]
    producer = ZeroMqPipeline(context, ports, payload, tuple(process.pid for process in processes))
    receiver = asyncio.create_task(producer.receive(), name="bench.zeromq.receive")
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await producer.ask()
        yield producer
    finally:
        receiver.cancel()
        for process in processes:
            process.terminate()
            await process.wait()
        context.destroy(linger=0)


async def _orchestrate(ports: Ports) -> None:
    context = zmq.asyncio.Context()
    inbox, results = _bound(context, zmq.PULL, ports.inbox), _bound(context, zmq.PUSH, ports.results)
    stages = [_bound(context, zmq.PUSH, port) for port in ports.stages]
    while True:
        message = msgpack.unpackb(await inbox.recv())
        message["stage"] += 1
        target = stages[message["stage"]] if message["stage"] < STAGES else results
        await target.send(msgpack.packb(message))


async def _work(ports: Ports, stage: int) -> None:
    context = zmq.asyncio.Context()
    tasks, results = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    tasks.connect(_url(ports.stages[stage]))
    results.connect(_url(ports.inbox))
    while True:
        task = msgpack.unpackb(await tasks.recv())
        await results.send(msgpack.packb(task))


async def _start(role: str, ports: Ports) -> ChildProcess:
    return await start_child(sys.executable, "-m", "bench.peers.zeromq", role, *ports.words())


def _bound(context: zmq.asyncio.Context, kind: int, port: int) -> zmq.asyncio.Socket:
    opened = context.socket(kind)
    opened.bind(_url(port))
    return opened


def _url(port: int) -> str:
    return f"tcp://127.0.0.1:{port}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main() -> None:
    role, *numbers = sys.argv[1:]
    ports = Ports.parse(numbers)
    work = _orchestrate(ports) if role == "orchestrator" else _work(ports, int(role.removeprefix("worker-")))
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(work)


if __name__ == "__main__":
    main()
