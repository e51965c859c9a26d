"""The numbers that KEDA scales by, read as it does from a live server's monitoring endpoint, beside our own."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.listening import free_port
from omnibus.broker.server_binary import find_binary, profile_path
from omnibus.client.producer import Producer
from omnibus.ledger.stage_lag import stage_lag
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.scaling import ScalePolicy
from omnibus.wire.request import Request
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.integration.test_deployment_files import rendered
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
SPEC = PipelineSpec(
    name="scaled", lanes=("interactive", "batch"), deadline=60.0,
    stages=(
        StageSpec(
            stage_id=0, name="writer", engine="sim", slots=2, final_output=True, final_output_type="text",
            engine_args={"hang_on": {"rid": "."}},
        ),
    ),
)  # fmt: skip
LANES = {"interactive": 7, "batch": 3}
"""Requests by lane."""
CHART: dict[str, Any] = {
    "pipeline": {"name": SPEC.name}, "stages": [{"id": 0, "name": "writer", "replicas": 0, "maxReplicas": 9, "lag": 2}],
    "keda": {"enabled": True, "lanes": list(LANES)},
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server with its monitoring endpoint; the addresses of both."""
    folder, port, monitoring = tmp_path_factory.mktemp("monitored"), free_port(), free_port()
    secrets = {"OMNIBUS_NATS_PASSWORD": "password", "OMNIBUS_NATS_SYSTEM_PASSWORD": "password"}
    command = [str(find_binary(None)), "-c", str(profile_path("dev")), "-p", str(port), "-m", str(monitoring)]
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **secrets, "OMNIBUS_NATS_STORE": str(folder)}, stdout=log, stderr=log
        )  # fmt: skip
    try:
        yield f"nats://omnibus:password@127.0.0.1:{port}", f"127.0.0.1:{monitoring}"
    finally:
        process.terminate()
        process.wait(20)


def triggers() -> list[dict[str, str]]:
    (scaled,) = [one["spec"] for one in rendered(CHART) if one["kind"] == "ScaledObject"]
    assert scaled["fallback"]["behavior"] == "currentReplicasIfHigher", "a consumer that is missing stops nobody"
    return [trigger["metadata"] for trigger in scaled["triggers"]]


async def keda_lags(endpoint: str, trigger: dict[str, str]) -> list[int]:
    """The lag of a trigger's consumer, as KEDA's nats-jetstream scaler reads it; none where there is no such consumer."""
    async with httpx.AsyncClient() as client:
        query = {"acc": trigger["account"], "consumers": "true", "config": "true"}
        answer = (await client.get(f"http://{endpoint}/jsz", params=query)).json()
    return [
        consumer["num_pending"] + consumer["num_ack_pending"]
        for account in answer["account_details"]
        for stream in account.get("stream_detail", ())
        if stream["name"] == trigger["stream"]
        for consumer in stream.get("consumer_detail", ())
        if consumer["name"] == trigger["consumer"]
    ]


async def load(connection: Connection) -> None:
    """Requests on both lanes, and one replica that has two of them in hand for ever."""
    await ensure_layout(connection, layout_of(SPEC))
    async with Producer(connection) as producer:
        for lane, count in LANES.items():
            for number in range(count):
                await producer.submit(SPEC, Request(prompt="a", lane=lane), rid=f"{lane}-{number}")


async def test_keda_and_omnibus_read_the_same_lag_of_every_lane_under_load(server: tuple[str, str]) -> None:
    url, endpoint = server
    async with connect(url, name="scaling", deadline=30.0) as connection:
        await load(connection)
        replica = Replica(connection, SPEC, SPEC.stages[0], ReplicaOptions(grace=0.1))
        running = asyncio.create_task(replica.run(), name="replica")

        async def in_hand() -> bool:
            info = await connection.api(f"CONSUMER.INFO.{triggers()[0]['stream']}.{triggers()[0]['consumer']}")
            return bool(info["num_ack_pending"])

        await eventually(in_hand, timeout=20.0)
        try:
            for trigger, (lane, count) in zip(triggers(), LANES.items(), strict=True):
                ours = await stage_lag(connection, SPEC.name, 0, [lane])
                assert await keda_lags(endpoint, trigger) == [ours] == [count]
                wanted = ScalePolicy(most=9, lag=int(trigger["lagThreshold"])).needed(ours)
                assert wanted == math.ceil(count / 2)
            assert await stage_lag(connection, SPEC.name, 0, LANES) == sum(LANES.values())
            missing = {**triggers()[0], "consumer": "stage-9-interactive"}
            assert await keda_lags(endpoint, missing) == []
            assert await stage_lag(connection, SPEC.name, 9, LANES) == 0
        finally:
            replica.drain()
            await asyncio.wait_for(running, 30.0)
