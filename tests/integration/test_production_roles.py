"""A whole pipeline under the configuration for production: TLS, and each process with the credentials of its role."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from omnibus.broker.connection import connect
from omnibus.broker.listening import free_port
from omnibus.broker.nats_access import Access
from omnibus.broker.roles import MOST_DIRECTED
from omnibus.client.producer import Producer
from omnibus.errors import BrokerDenied, BrokerError
from omnibus.pipeline.loading import load_pipeline
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Cancel, Rpc
from omnibus.wire.request import Request
from omnibus.workers.lanes import Lanes
from omnibus.workers.replica import Replica
from tests.support.guarded import Guarded, guarded_server
from tests.support.served import omnibus, start
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_server(tmp_path_factory.mktemp("guarded")) as made:
        yield made


def test_request_ends_done_when_each_process_has_its_own_role(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in guarded.environment().items():
        monkeypatch.setenv(name, value)
    log = guarded.folder / "processes.log"
    deployed = omnibus("pipeline", "deploy", str(guarded.file), nats=guarded.url)
    assert deployed.returncode == 0, deployed.stderr
    port = free_port()
    commands = [
        ["orchestrator"], ["frontdoor", "--port", str(port)], ["worker", "--stage", "0"],
        ["worker", "--stage", "1", "--allow-module", "tests.support.whoami"],
    ]  # fmt: skip
    processes = [
        start(*words, *(["-p", "guarded"] if words[0] != "frontdoor" else []), nats=guarded.url, log=log)
        for words in commands
    ]
    try:
        done = omnibus("submit", "hello", "-p", "guarded", nats=guarded.url, timeout=45)
        assert done.returncode == 0, done.stderr + log.read_text()
        assert done.stdout.strip().isdecimal()
        _ask_the_front_door(f"http://127.0.0.1:{port}")
        assert asyncio.run(_taken_from(guarded, stores.stage_consumer(1, "r0"))) >= 2
        assert "permission_denied" not in log.read_text()
        looked = omnibus("status", "--json", nats=guarded.url)
        assert [len(stage["replicas"]) for stage in json.loads(looked.stdout)["stages"]] == [1, 1]
        assert looked.stderr == "", "TLS ends without a word"
        asyncio.run(_look_at_an_open_request(guarded.url, log))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
    assert "eof_received" not in log.read_text()


async def _look_at_an_open_request(url: str, log: Path) -> None:
    """Commands that look at one request: with an observer's credentials, which the folder has too, they were refused."""
    words = ("hang-1", "--json")
    sender = start("submit", "hello", "-p", "guarded", "--request-id", "hang-1", nats=url, log=log)
    try:
        status = await eventually(lambda: _running(omnibus("status", *words, nats=url)), 30, what="a replica has it")
        assert [(one["stage"], one["replica"]) for one in status["at"]] == [("first", "r0")]
        traced = omnibus("trace", *words, nats=url)
        assert [span["what"] for span in json.loads(traced.stdout)["spans"]] == ["running"], traced.stderr
    finally:
        cancelled = omnibus("cancel", "hang-1", nats=url)
        sender.wait(30)
    assert cancelled.returncode == 0, cancelled.stderr
    assert json.loads(omnibus("trace", *words, nats=url).stdout)["state"] == "cancelled"


def _running(looked: subprocess.CompletedProcess[str]) -> dict[str, Any] | None:
    """What `omnibus status` says of a request, once a replica has it."""
    if looked.returncode != 0:
        assert "permission" not in looked.stderr
        return None
    status: dict[str, Any] = json.loads(looked.stdout)
    return status if any(one["replica"] for one in status["at"]) else None


async def _taken_from(guarded: Guarded, consumer: str) -> int:
    """How many tasks a replica has taken from a consumer."""
    access = guarded.access("operator")
    async with connect(guarded.url, name="looks", role="operator", access=access, deadline=30) as connection:
        info = await connection.api(f"CONSUMER.INFO.{stores.work_stream('guarded')}.{consumer}")
    return int(info["delivered"]["consumer_seq"])


def _ask_the_front_door(url: str) -> None:
    """Send a request and a stream, and read the state of one over HTTP."""
    transport = httpx.HTTPTransport(retries=8)  # it may still be starting
    with httpx.Client(base_url=url, timeout=45, transport=transport) as client:
        asked = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}]}
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"].isdecimal()
        streamed = client.post("/v1/chat/completions", json={**asked, "stream": True})
        assert streamed.status_code == 200
        assert streamed.text.rstrip().endswith("data: [DONE]")
        assert client.get("/ready", params={"model": "guarded"}).status_code == 200
        _ask_what_the_dashboard_asks(client)


def _ask_what_the_dashboard_asks(client: httpx.Client) -> None:
    """The credentials of a front door are enough for all that the dashboard shows."""
    (seen,) = client.get("/v1/cluster").json()["pipelines"]
    assert [stage["up"] for stage in seen["stages"]] == [1, 1]
    listed = client.get("/v1/requests").json()["data"]
    assert {one["status"] for one in listed} == {"done"}
    spans = client.get(f"/v1/requests/{listed[0]['id']}/trace").json()["spans"]
    assert [span["what"] for span in spans] == ["waited", "ran"] * 2
    assert client.get("/v1/dead_letters").json()["data"] == []


ATTACKS = {
    "deploy a pipeline": ("$KV.omni-pipelines.guarded", b"x"),
    "order a restart": (subjects.ctl("guarded", 0, "r0"), codec.encode(Rpc(method="restart"))),
    "cancel everybody's requests": (subjects.ctl_all("guarded"), codec.encode(Cancel(rids=("a",), until=2.0**40))),
    "pause a stage": ("$KV.omni-pipelines.guarded.pause.0", b"x"),
    "read any record": ("$JS.API.STREAM.MSG.GET.KV_omni-guarded-requests", b'{"seq":1}'),
    "write a record": ("$KV.omni-guarded-requests.a", b"x"),
    "take tasks of another stage": ("$JS.API.CONSUMER.MSG.NEXT.OMNI_guarded_WORK.stage-0-interactive", b"1"),
    "take events": ("$JS.API.CONSUMER.MSG.NEXT.OMNI_guarded_WORK.events", b"1"),
    "read the queue": ("$JS.API.DIRECT.GET.OMNI_guarded_WORK", b'{"seq":1}'),
    "acknowledge tasks of another stage": ("$JS.ACK.OMNI_guarded_WORK.stage-0-interactive.1.1.1.1.0", b"+ACK"),
    "publish another stage's result": (subjects.event("guarded", 0, "final", "a"), b"x"),
    "fire a deadline": (subjects.deadline_event("guarded", "a"), b"x"),
    "make a consumer": ("$JS.API.CONSUMER.CREATE.OMNI_guarded_WORK.mine", b"{}"),
    "remove a consumer": ("$JS.API.CONSUMER.DELETE.OMNI_guarded_WORK.events", b""),
    "make a stream": ("$JS.API.STREAM.CREATE.MINE", b"{}"),
    "remove a stream": ("$JS.API.STREAM.DELETE.OMNI_guarded_WORK", b""),
    "purge the queue": ("$JS.API.STREAM.PURGE.OMNI_guarded_WORK", b""),
    "purge the ledger": ("$JS.API.STREAM.PURGE.KV_omni-guarded-requests", b""),
    "declare a replica of another stage": ("$KV.omni-guarded-replicas.0.r0", b"x"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("user", ["worker-1", "producer", "observer"])
async def test_attack_is_refused_at_once_when_the_role_is_not_for_it(guarded: Guarded, user: str, attack: str) -> None:
    subject, data = ATTACKS[attack]
    async with connect(guarded.url, name="attacker", role=user, access=guarded.access(user), deadline=30) as connection:
        with pytest.raises(BrokerDenied, match="may not publish"):
            await connection.request(subject, data, timeout=60)
        assert connection.metrics.permission_denied._value.get() >= 1


@pytest.mark.parametrize(
    "subject", ["omni.>", "$KV.>", "omni.guarded.out.other.*", "omni.guarded.task.1.*.*", "_INBOX.>"]
)
@pytest.mark.parametrize("user", ["producer", "worker-0", "observer", "supervisor-0"])
async def test_listening_to_others_is_refused_when_a_role_tries(guarded: Guarded, user: str, subject: str) -> None:
    async def nothing(_message: object) -> None:
        return

    async with connect(guarded.url, name="attacker", role=user, access=guarded.access(user), deadline=30) as connection:
        with suppress(BrokerDenied):  # the refusal may come a moment after the call
            await connection.subscribe(subject, nothing)
        await eventually(lambda: connection.metrics.permission_denied._value.get() >= 1, what="it is refused")


async def test_stranger_does_not_get_in_when_it_has_no_credentials(guarded: Guarded) -> None:
    access = Access(ca=guarded.keys / "ca.pem")
    with pytest.raises(BrokerError):
        async with connect(guarded.url, name="stranger", access=access, deadline=5):
            pytest.fail("connected")


async def test_request_ends_when_a_worker_that_may_read_no_records_finds_its_task_malformed(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker says so in an event, and an orchestrator, which has the record, ends the request."""
    for name, value in guarded.environment().items():
        monkeypatch.setenv(name, value)
    assert omnibus("pipeline", "deploy", str(guarded.file), nats=guarded.url).returncode == 0
    log = guarded.folder / "unreadable.log"
    orchestrator = start("orchestrator", "-p", "guarded", nats=guarded.url, log=log)
    spec = load_pipeline(str(guarded.file))
    try:
        async with AsyncExitStack() as stack:
            front, writer, worker = [
                await stack.enter_async_context(
                    connect(guarded.url, name=role, role=role, access=guarded.access(user), deadline=30)
                )
                for role, user in (("frontdoor", "frontdoor"), ("test", "orchestrator"), ("worker", "worker-0"))
            ]
            producer = await stack.enter_async_context(Producer(front))
            submission = await producer.submit(spec, Request(prompt="hello"))  # nobody serves its second stage
            await writer.js_publish(subjects.task("guarded", 0, "interactive", submission.rid), b"\xc1junk")
            replica = Replica(worker, spec, spec.stages[0])
            serving = asyncio.create_task(replica.run())
            async with asyncio.timeout(40):
                result = await submission.result()
            replica.drain()
            await serving
        assert result.state is RequestState.FAILED
        assert result.failure is not None
        assert "malformed" in result.failure.message
    finally:
        orchestrator.terminate()
        orchestrator.wait(20)


async def test_worker_is_told_why_when_its_credentials_do_not_name_its_own_lane(guarded: Guarded) -> None:
    spec = load_pipeline(str(guarded.file))
    access = guarded.access("worker-1")
    async with connect(guarded.url, name="worker", role="worker", access=access, deadline=30) as connection:
        lanes = Lanes(connection, spec, spec.stages[1])
        await lanes.open(f"r{MOST_DIRECTED - 1}")
        with pytest.raises(BrokerDenied, match=f"do not name the lane r{MOST_DIRECTED} of the directed stage 1"):
            await lanes.open(f"r{MOST_DIRECTED}")
        assert lanes.replica == f"r{MOST_DIRECTED - 1}"
