"""Stages that come up as the command line has it: devices, deadlines, overrides; each with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.nats_access import without_password
from omnibus.cli.process_group import log_stats
from omnibus.client.producer import Producer
from omnibus.errors import StageStartError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import configure_logging
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline, load_deployed
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire.request import Request
from omnibus.workers.engines.vllm.arguments import environment
from omnibus.workers.replica import Replica
from omnibus.workers.supervisor import Supervisor
from tests.support.served import start, write_pipeline
from tests.support.stage_processes import stage_processes
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration

REPORTING = """
name: reporting
deadline: 60s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: report, engine: python, model: "tests.support.environment_stage:report", devices: "1,2",
   num_replicas: 2, env: {OF_STAGE: "yes"}, final_output: true, final_output_type: text,
   engine_args: {outputs: {text: text}}}
"""


@contextmanager
def served(folder: Path, text: str, *flags: str, timeout: float = 60.0) -> Iterator[Serving]:
    """`omnibus serve` of a pipeline, without the front door."""
    words = ("--no-frontdoor", "--nats-port", "0", *flags)
    with serving(str(write_pipeline(folder, text)), *words, state_dir=folder / "state", timeout=timeout) as running:
        yield running


async def reports(nats_url: str, spec: PipelineSpec, count: int) -> list[dict[str, Any]]:
    """Reports of the replicas, one of each process, by their devices."""
    async with connect(nats_url, name="test") as connection, Producer(connection) as producer:

        async def ask(number: int) -> dict[str, Any]:
            result = await (await producer.submit(spec, Request(prompt=f"{number}"))).result()
            return json.loads(result.outputs[0].text)  # type: ignore[no-any-return]

        answers = await asyncio.gather(*(ask(number) for number in range(count)))
    return sorted({answer["pid"]: answer for answer in answers}.values(), key=lambda one: one["CUDA_VISIBLE_DEVICES"])


async def test_replica_sees_its_own_devices_when_several_run_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """parity: device visibility narrowed a replica, within what the launcher sees; environment a stage."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with served(tmp_path, REPORTING) as running:
        said = await reports(running.nats_url, load_pipeline(tmp_path / "pipeline.yaml"), 20)
        async with (
            connect(running.nats_url, name="test") as connection,
            ReplicaView(connection, "reporting", timeout=2.0) as view,
        ):
            registered = sorted(record.devices for record in view.replicas())
    assert [(one["CUDA_VISIBLE_DEVICES"], one["HIP_VISIBLE_DEVICES"]) for one in said] == [("5", "5"), ("6", "6")]
    assert {one["OF_STAGE"] for one in said} == {"yes"}
    assert registered == ["5", "6"]


async def test_worker_has_its_own_number_and_devices_when_it_overrides_its_stage(tmp_path: Path) -> None:
    """parity: --omni-dp-size-local N and --stage-overrides are local to each invocation; scenario B's shape."""
    overrides = ["--stage-overrides", "report.devices='7'", "--stage-overrides", '{"0": {"env": {"OF_STAGE": "no"}}}']
    with served(tmp_path, REPORTING, "--stage-overrides", "{report: {devices: '3', num_replicas: 1}}") as running:
        words = ["worker", "--stage", "report", "--replicas", "1", *overrides]
        worker = start(*words, nats=running.nats_url, log=tmp_path / "worker.log")
        try:
            async with (
                connect(running.nats_url, name="test") as connection,
                ReplicaView(connection, "reporting", timeout=2.0) as view,
            ):
                await view.wait_until(lambda found: sum(one.status == "up" for one in found) == 2, 30)
                deployed = await load_deployed(connection, "reporting")
            said = await reports(running.nats_url, deployed, 20)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(20)
    assert [(one["CUDA_VISIBLE_DEVICES"], one["OF_STAGE"]) for one in said] == [("3", "yes"), ("7", "no")]
    assert deployed.stages[0].devices == "3", "what serve overrides is deployed, what a worker overrides is not"


def test_deployed_pipeline_has_the_policy_when_serve_is_given_one(tmp_path: Path) -> None:
    """parity: --omni-lb-policy, a stage."""
    with served(tmp_path, REPORTING, "--replicas", "1", "--lb-policy", "0=round-robin", "--log-stats") as running:
        policy = asyncio.run(_deployed(running.nats_url)).stages[0].lb_policy
    assert policy == "round-robin"


def test_commands_of_the_other_stages_are_printed_when_serve_runs_some(tmp_path: Path) -> None:
    """parity: scenario B and C: the head says what it waits for; a stage with `num_replicas: 0` is served elsewhere."""
    more = "- {stage_id: 1, name: far, engine: sim, input_sources: [0], final_output: true, final_output_type: audio,"
    said: list[str] = []
    file = write_pipeline(tmp_path, f"{REPORTING}{more} num_replicas: 0}}\n")
    words = ("--no-frontdoor", "--nats-port", "0", "--replicas", "1", "--stages", "0")
    with serving(str(file), *words, state_dir=tmp_path / "state", say=said.append) as running:
        pass
    way_in = f"--nats {without_password(running.nats_url)} --credentials COPY (of "
    assert any(line.startswith(f"elsewhere: omnibus worker --pipeline reporting --stage far {way_in}") for line in said)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            "tests.support.environment_stage:Stuck",
            [
                "the engine did not load within 1 s; a slow one needs more (--stage-init-timeout)",
                "a device that never answers",
            ],
        ),
        ("tests.support.stuck_module:anything", ["importing the engine took more than 1 s", "stuck_module.py"]),
    ],
    ids=["constructor", "import"],
)
async def test_stage_and_replica_are_named_when_an_engine_never_loads(
    connection: Connection, pipeline: str, model: str, says: list[str]
) -> None:
    """parity: stage_init_timeout with a clear error that names stage and replica, and shows the last log lines."""
    stage = StageSpec(
        stage_id=3, name="slow", engine="python", model=model, devices="stuck-test", final_output=True,
        final_output_type="text",
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, stages=(stage,), heartbeat_timeout=2.0)
    await deploy_pipeline(connection, spec)
    supervisor = Supervisor(
        stage_processes(spec, stage, broker={"OMNIBUS_NATS_URL": connection.url}, start_timeout=1.0), grace=5
    )
    async with asyncio.timeout(30):
        with pytest.raises(StageStartError) as caught:
            await supervisor.run()
    assert "slow.0 cannot start (stage 3 'slow', replica 0 of 1 on devices stuck-test)" in caught.value.message
    assert all(part in caught.value.message for part in says)


def test_what_is_not_up_is_named_when_init_takes_too_long(tmp_path: Path) -> None:
    """parity: --init-timeout."""
    text = REPORTING.replace("environment_stage:report", "environment_stage:Stuck")
    with (
        pytest.raises(StageStartError) as caught,
        served(tmp_path, text, "--init-timeout", "15", "--stage-init-timeout", "50"),
    ):
        pass
    assert "not everything is up after 15 s: stage 0 'report': 0 of 2 up" in caught.value.message
    assert "waiting for a device that never answers" in caught.value.message
    assert "Traceback" not in caught.value.message


@pytest.mark.parametrize(("devices", "overlap"), [("one-device", False), ("", True)])
async def test_engines_load_one_after_the_other_when_they_share_a_device(
    connection: Connection, pipeline: str, tmp_path: Path, devices: str, overlap: bool
) -> None:
    """parity: device locks between processes, held while a device initialises."""
    telemetry = tmp_path / "telemetry"
    stages = tuple(_slow(number, devices, telemetry) for number in range(2))
    spec = PipelineSpec(name=pipeline, stages=stages, heartbeat_timeout=2.0)
    await deploy_pipeline(connection, spec)
    processes = [
        process
        for stage in stages
        for process in stage_processes(spec, stage, broker={"OMNIBUS_NATS_URL": connection.url})
    ]
    supervisor = Supervisor(processes, grace=5)
    running = asyncio.create_task(supervisor.run())
    async with ReplicaView(connection, pipeline, timeout=2.0) as view:
        await view.wait_until(lambda found: sum(one.status == "up" for one in found) == 2, 30)
    supervisor.stop()
    async with asyncio.timeout(20):
        await running
    (_, first_end), (second_start, _) = _times(telemetry)
    assert (second_start < first_end) is overlap


def test_error_is_one_line_when_a_device_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    says = "stage 0: there is no device 1: CUDA_VISIBLE_DEVICES is '0'"
    with pytest.raises(StageStartError, match=says), served(tmp_path, REPORTING):
        pass


async def test_worker_is_refused_when_it_overrides_what_others_rely_on(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(own_server.url, name="test") as connection:
        await deploy_pipeline(connection, load_pipeline(write_pipeline(tmp_path, REPORTING)))
    words = ["worker", "--stage", "0", "--stage-overrides", "0.lb_policy=random"]
    log = tmp_path / "log"
    worker = start(*words, nats=own_server.url, log=log)
    assert await asyncio.to_thread(worker.wait, 30) == 2
    assert "--stage-overrides: lb_policy: others rely on it" in log.read_text()


def _slow(stage_id: int, devices: str, telemetry: Path) -> StageSpec:
    return StageSpec(
        stage_id=stage_id, name=f"slow{stage_id}", engine="python", model="tests.support.environment_stage:Slow",
        devices=devices and f"{devices}-{os.getpid()}", engine_args={"telemetry": str(telemetry), "seconds": 2.0},
        final_output=True, final_output_type=f"text{stage_id}",
    )  # fmt: skip


def _times(telemetry: Path) -> Sequence[tuple[float, float]]:
    """When each load began and ended, the first first."""
    spans = sorted(tuple(float(word) for word in line.split()) for line in telemetry.read_text().splitlines())
    assert all(start < time.monotonic() for start, _ in spans)
    return [(span[0], span[1]) for span in spans]


async def _deployed(nats_url: str) -> PipelineSpec:
    async with connect(nats_url, name="test") as connection:
        return await load_deployed(connection, "reporting")


async def test_load_of_every_replica_is_logged_when_stats_are_wanted(
    connection: Connection, pipeline: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """parity: --log-stats."""
    spec = PipelineSpec(name=pipeline, stages=(_slow(0, "", Path(os.devnull)),), heartbeat_timeout=2.0)
    await deploy_pipeline(connection, spec)
    configure_logging("info", "json")
    async with stage_replica(connection, spec), ReplicaView(connection, pipeline, timeout=2.0) as view:
        await view.wait_until(lambda found: any(one.status == "up" for one in found), 30)
        logging = asyncio.create_task(log_stats(view, every=0.05))
        lines: list[str] = []

        def logged() -> str:
            lines.extend(capfd.readouterr().err.splitlines())
            return next((line for line in lines if LogEvent.REPLICA_STATS in line), "")

        line = await eventually(logged)
        logging.cancel()
    assert {"stage": 0, "status": "up", "slots": 1, "in_flight": 0, "queue_length": 0}.items() <= json.loads(
        line
    ).items()


@asynccontextmanager
async def stage_replica(connection: Connection, spec: PipelineSpec) -> AsyncIterator[None]:
    """A replica of the pipeline's first stage, in this process."""
    replica = Replica(connection, spec, spec.stages[0])
    running = asyncio.create_task(replica.run())
    try:
        yield
    finally:
        replica.drain()
        await running


def test_torch_warns_of_no_triton_when_a_model_is_loaded() -> None:
    """By its own logger, in a process of the environment that ours has: EngineCore may be spawned."""
    program = "from torch._library.triton import get_inner_triton_kernels as k; print(k(print))"
    child = [sys.executable, "-W", "ignore", "-c", program]
    heard = subprocess.run(child, env={**os.environ, **environment()}, capture_output=True, text=True, check=True)
    assert (heard.stdout.strip(), heard.stderr) == ("[]", "")
