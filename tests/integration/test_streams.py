"""Streams that go on: a replica, a front door or messages are lost in mid-stream, and the client reads one whole text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.broker.delivery import release
from omnibus.broker.listening import free_port
from omnibus.client.producer import Producer
from omnibus.client.request_events import ClientEvent, Ended, OutputArrived, StepProgress, TextPiece
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement
from omnibus.wire.out import Out, Tokens
from omnibus.wire.request import Request
from omnibus.workers.engines.sim import expected_text
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support.cluster import HOST, Cluster, pipeline_of
from tests.support.flow import serving, sim
from tests.support.runners import Runners
from tests.support.sse import streamed
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

PROMPT = " ".join(f"w{number:03}" for number in range(100))
SLOW = """
name: slow
deadline: 60s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: writer, engine: sim, slots: 8, final_output: true, final_output_type: text,
   engine_args: {outputs: {text: text}, token_rate: 60}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("streams")
    async with Cluster(folder / "cluster", pipeline_of(folder, SLOW), replicas={0: 2}) as running:
        yield running


class Eavesdropper:
    """All deltas of a pipeline, as they cross the broker."""

    def __init__(self) -> None:
        self.tokens: list[Tokens] = []

    async def on_message(self, message: ReceivedMessage) -> None:
        said: Out = codec.decode(message.data, Out)
        if isinstance(said, Tokens):
            self.tokens.append(said)

    def attempts(self) -> list[list[Tokens]]:
        """The messages of each attempt, in the order of their fences."""
        fences = sorted({message.fence for message in self.tokens})
        return [[message for message in self.tokens if message.fence == fence] for fence in fences]


@pytest.mark.asyncio(loop_scope="module")
async def test_stream_goes_on_when_its_replica_is_killed(cluster: Cluster) -> None:
    overheard = Eavesdropper()
    listening = await cluster.connection.subscribe(f"omni.{cluster.spec.name}.out.*.*", overheard.on_message)
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=30.0) as http,
        Runners(cluster.connection, cluster.spec.name, cluster.view) as runners,
        streamed(http, cluster.spec.name, PROMPT) as stream,
    ):
        await stream.read_to(len(PROMPT) // 4)
        before = len(stream.text.split())
        killed = await runners.kill(0, stream.rid)
        await stream.read()
    await listening.unsubscribe()
    assert (stream.text, stream.done, stream.finish_reason) == (PROMPT, True, "stop")
    assert stream.usage is not None
    assert stream.usage["completion_tokens"] == len(PROMPT.split())
    _, second = overheard.attempts()
    # The second attempt says at once what the client has, and does not make it again word by word.
    assert len(second[0].token_ids) >= before
    assert len(second) <= 1 + len(PROMPT.split()) - before
    print(f"{1000 * stream.longest_pause(killed):.0f} ms without text after the kill")
    assert stream.longest_pause(killed) < cluster.spec.heartbeat_timeout, "given back by the lease alone"


@pytest.mark.asyncio(loop_scope="module")
async def test_client_that_comes_back_reads_the_whole_text_when_its_front_door_was_killed(cluster: Cluster) -> None:
    slow, other = {"sampling_params": {"writer": {"token_rate": 20}}}, free_port()
    await cluster.start("other-door", "frontdoor", "--port", str(other))
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=30.0) as http,
        httpx.AsyncClient(base_url=f"http://{HOST}:{other}", timeout=30.0) as elsewhere,
    ):
        await eventually(lambda: answers(elsewhere), 30.0)
        async with streamed(http, cluster.spec.name, PROMPT, key="back", **slow) as stream:
            await stream.read_to(50)
            await cluster.kill("frontdoor")
            with pytest.raises(httpx.RemoteProtocolError):
                await stream.read()
        async with streamed(elsewhere, cluster.spec.name, PROMPT, key="back", **slow) as again:
            await again.read_to(1)
            status = (await elsewhere.get(f"/v1/requests/{again.rid}")).json()["status"]
            await again.read()
        # While it ran: first all that had been said, then the rest as it came.
        assert (again.rid, status) == (stream.rid, "open")
        assert len(again.pieces[0][1]) >= len(stream.text)
        assert len(again.pieces) > 5
        assert (again.text, again.done) == (PROMPT, True)
        # And after its end, at the door that was started again.
        await cluster.front_door()
        await eventually(lambda: answers(http), 30.0)
        async with streamed(http, cluster.spec.name, PROMPT, key="back", **slow) as later:
            await later.read()
        assert (later.rid, later.text, later.done) == (stream.rid, PROMPT, True)


async def answers(http: httpx.AsyncClient) -> bool:
    """Whether a front door serves."""
    try:
        return (await http.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False


def speaker(name: str, **args: object) -> PipelineSpec:
    return PipelineSpec(name=name, deadline=20.0, heartbeat_timeout=1.0, stages=(sim(0, final="text", **args),))


async def test_late_follower_receives_the_text_that_was_sent_before(connection: Connection, pipeline: str) -> None:
    spec = speaker(pipeline, token_rate=100.0)
    async with serving(connection, spec) as producer:
        first = await producer.submit(spec, Request(prompt=PROMPT), rid="late")
        async with aclosing(first.events()) as events:
            assert isinstance(await anext(events), TextPiece)
        async with Producer(connection) as other:
            second = await other.submit(spec, Request(prompt=PROMPT), rid="late")
            received = await everything(second.events())
    assert second.attached
    assert texts(received) == PROMPT
    # Not from the output alone, with which a text comes in one piece.
    assert sum(isinstance(event, TextPiece) for event in received) > 5


async def test_stream_goes_on_when_its_task_is_requeued(connection: Connection, pipeline: str) -> None:
    spec, overheard = speaker(pipeline, token_rate=100.0), Eavesdropper()
    async with serving(connection, spec, replicas=0) as producer, asyncio.TaskGroup() as group:
        leaving, staying = (Replica(connection, spec, spec.stages[0], ReplicaOptions(grace=0.1)) for _ in range(2))
        group.create_task(leaving.run())
        listening = await connection.subscribe(subjects.out_all(pipeline, producer.front), overheard.on_message)
        submission = await producer.submit(spec, Request(prompt=PROMPT), rid="moved")
        following = group.create_task(everything(submission.events()))
        await eventually(lambda: len(overheard.tokens) > 20)
        group.create_task(staying.run())
        leaving.drain()
        received = await following
        staying.drain()
        await listening.unsubscribe()
    assert texts(received) == PROMPT
    _, second = overheard.attempts()
    assert len(second[0].token_ids) > 20


async def test_gap_is_filled_from_the_replica_when_messages_were_lost(connection: Connection, pipeline: str) -> None:
    spec, overheard = speaker(pipeline, token_rate=100.0), Eavesdropper()
    async with serving(connection, spec) as producer:
        channel = await producer.channel(pipeline)
        submission = await producer.submit(spec, Request(prompt=PROMPT), rid="gap")
        listening = await connection.subscribe(subjects.out_all(pipeline, producer.front), overheard.on_message)
        await eventually(lambda: len(overheard.tokens) > 3)
        await channel._subscriptions.pop().unsubscribe()
        lost = len(overheard.tokens)
        await eventually(lambda: len(overheard.tokens) > lost + 3)
        subject = subjects.out_all(pipeline, producer.front)
        channel._subscriptions.append(await connection.subscribe(subject, channel.on_message))
        received = await everything(submission.events())
        await listening.unsubscribe()
    assert texts(received) == PROMPT
    pieces = [event.text for event in received if isinstance(event, TextPiece)]
    assert len(pieces) > lost + 5
    assert max(len(piece) for piece in pieces) < len(PROMPT) // 2


async def test_progress_never_runs_backwards_when_the_stage_begins_again(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(
        name=pipeline, deadline=20.0, heartbeat_timeout=1.0,
        stages=(sim(0, outputs={"image": "image"}, final="image", steps=10, latency=0.4, hang_on={"attempts": [1]}),),
    )  # fmt: skip
    claims: list[str] = []

    async def on_message(message: ReceivedMessage) -> None:
        claims.extend(ack_subject for _, ack_subject in codec.decode(message.data, Announcement).taken)

    async with serving(connection, spec) as producer:
        listening = await connection.subscribe(subjects.claims(pipeline), on_message)
        submission = await producer.submit(spec, Request(prompt="a dog"), rid="steps")
        received: list[ClientEvent] = []
        async with aclosing(submission.events()) as events:
            async for event in events:
                received.append(event)
                if isinstance(event, StepProgress) and event.step == 6:
                    await release(connection, claims[0])  # as whoever sees a death does
        await listening.unsubscribe()
    steps = [event.step for event in received if isinstance(event, StepProgress)]
    assert len(claims) > 1, "the task ran once only"
    assert steps == sorted(set(steps))
    assert steps[-1] == 10
    assert sum(isinstance(event, OutputArrived) for event in received) == 1


async def everything(events: AsyncIterator[ClientEvent]) -> list[ClientEvent]:
    async with asyncio.timeout(20.0):
        return [event async for event in events]


def texts(events: list[ClientEvent]) -> str:
    assert isinstance(events[-1], Ended)
    assert expected_text(PROMPT) == PROMPT
    return "".join(event.text for event in events if isinstance(event, TextPiece))
