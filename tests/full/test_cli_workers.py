"""Stages as processes of their own: started in any order, joining and leaving while requests run."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from omnibus.broker.connection import connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.client.producer import Producer
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire.request import Request
from tests.support.served import omnibus, start, write_pipeline
from tests.support.waiting import eventually
from tools.serving import serving

pytestmark = pytest.mark.integration

TWO_STAGES = """
name: two
deadline: 60s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: first, engine: sim, slots: 4}
- {stage_id: 1, name: second, engine: python, model: "tests.support.whoami:answer", slots: 1, input_sources: [0],
   final_output: true, final_output_type: text, engine_args: {outputs: {text: text}}}
"""


def test_request_is_served_when_workers_start_before_broker_and_pipeline(tmp_path: Path) -> None:
    port = free_port()
    nats, log = f"nats://omnibus:known-before@127.0.0.1:{port}", tmp_path / "log"
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "nats.credentials").write_text("omnibus:known-before\n")
    with ExitStack() as stack:
        for words in (["worker", "--stage", "second"], ["orchestrator"], ["worker", "--stage", "0"]):
            stack.enter_context(_started(*words, "--pipeline", "two", nats=nats, log=log))
        with asyncio.Runner() as runner:
            done = runner.run(_deploy_and_ask(tmp_path, port))
    assert done.returncode == 0, done.stderr + log.read_text()
    assert done.stdout.strip().isdecimal()


async def test_load_is_shared_and_nothing_fails_when_replicas_join_and_leave(tmp_path: Path) -> None:
    file, log, spec = write_pipeline(tmp_path, TWO_STAGES), tmp_path / "log", parse_pipeline(TWO_STAGES)
    with (
        serving(
            str(file), "--no-frontdoor", "--nats-port", "0", "--stages", "first", state_dir=tmp_path / "state"
        ) as served,
        _started("worker", "--stage", "1", "--replicas", "2", nats=served.nats_url, log=log) as pair,
    ):
        async with (
            connect(served.nats_url, name="test") as connection,
            Producer(connection) as producer,
            ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout) as view,
        ):
            await _up(view, 2)
            both = await _answers(producer, spec, 40)
            assert len(both) == 2
            assert min(both.values()) >= 12, "the free replica was not the one that got the next task"

            changed = asyncio.Event()
            flowing = asyncio.create_task(_answers_until(changed, producer, spec))
            with _started("worker", "--stage", "1", "--replicas", "1", nats=served.nats_url, log=log):
                await _up(view, 3)
                joined = await _answers(producer, spec, 60)
                pair.send_signal(signal.SIGTERM)
                await _up(view, 1)
                changed.set()
                await flowing
                alone = await _answers(producer, spec, 4)
    assert len(joined) == 3
    assert len(alone) == 1
    assert set(alone) == set(joined) - set(both), "the pair has left"


async def test_up_and_missing_parts_are_named_when_stages_are_served_apart(tmp_path: Path) -> None:
    """A head with one stage names the other; a worker says when its own replicas are up, and counts no others."""
    said: list[str] = []
    head = ("--no-frontdoor", "--nats-port", "0", "--stages", "0")
    file = str(write_pipeline(tmp_path, TWO_STAGES))
    with ExitStack() as stack:
        served = stack.enter_context(serving(file, *head, state_dir=tmp_path / "state", say=said.append))
        assert re.match(r"elsewhere: omnibus worker --pipeline two --stage second .*--nats nats://", said[0])
        assert said[-1] == "missing: a replica of second (none starts): requests wait until the workers above run"
        assert "up: first r0" in said
        for number, mine in enumerate(({"r0", "r1"}, {"r2", "r3"})):
            log = tmp_path / f"log-{number}"
            words = ("worker", "--stage", "1", "--replicas", "2")
            stack.enter_context(_started(*words, nats=served.nats_url, log=log))
            lines = await eventually(lambda log=log: _own_lines(log) if "ready: " in log.read_text() else None, 60.0)
            assert set(lines[:-1]) == {f"up: second {replica}" for replica in mine}
            assert lines[-1].startswith("ready: two, 2 replicas of stage 1 second, NATS nats://127.0.0.1:")
            assert "omnibus:" not in lines[-1], "the password"
        said.clear()
        beside = (*head[:3], "--nats", served.nats_url)
        stack.enter_context(serving(file, *beside, "--stages", "0", state_dir=tmp_path / "beside", say=said.append))
    assert said[-1].startswith("try: "), "nothing is missing any more"


def _own_lines(log: Path) -> list[str]:
    """Lines of a worker that are no log of it or of its replicas."""
    return [line for line in log.read_text().splitlines() if line.startswith(("up: ", "ready: "))]


async def _deploy_and_ask(folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    async with EmbeddedServer(folder / "state", profile="dev", port=port) as server:
        deployed = await asyncio.to_thread(
            omnibus, "pipeline", "deploy", str(write_pipeline(folder, TWO_STAGES)), nats=server.url
        )
        assert deployed.returncode == 0, deployed.stderr
        return await asyncio.to_thread(omnibus, "submit", "any order", nats=server.url, timeout=60.0)


async def _answers(producer: Producer, spec: PipelineSpec, count: int) -> Counter[str]:
    """Count the answers of each replica to `count` requests, eight at a time; fails when one of them does."""
    free = asyncio.Semaphore(8)

    async def ask(number: int) -> str:
        async with free:
            result = await (await producer.submit(spec, Request(prompt=f"request {number}"))).result()
            result.raise_for_state()
            return result.outputs[0].text

    return Counter(await asyncio.gather(*(ask(number) for number in range(count))))


async def _answers_until(changed: asyncio.Event, producer: Producer, spec: PipelineSpec) -> None:
    """Keep requests flowing, however long starting and leaving takes; fails when one of them does."""
    while not changed.is_set():
        await _answers(producer, spec, 40)


async def _up(view: ReplicaView, count: int) -> None:
    """Wait until so many replicas of stage 1 are up."""
    await view.wait_until(
        lambda replicas: sum(one.stage_id == 1 and one.status == "up" for one in replicas) == count, 30.0
    )


@contextmanager
def _started(*words: str, nats: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(*words, nats=nats, log=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
