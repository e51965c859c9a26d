"""Deploying pipelines: the broker is laid out, the specification is found again, and doing it twice changes nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from omnibus.batches.batch_record import BatchRecord
from omnibus.batches.batch_store import BatchStore
from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import layout_of, own_streams, plan
from omnibus.client.cluster_view import ClusterView
from omnibus.client.producer import Producer
from omnibus.errors import InvalidName, PipelineError
from omnibus.files.file_store import FileStore
from omnibus.ledger.records import Ledger
from omnibus.orchestrator.deployed import DeployedOrchestrator
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.deployed_pipelines import (
    change_deployed,
    delete_pipeline,
    deploy_pipeline,
    list_deployed,
    load_deployed,
)
from omnibus.requests.state import RequestState
from omnibus.wire import stores, subjects
from omnibus.wire.request import Request
from tests.support.directed import replica
from tests.support.flow import sim
from tests.support.guarded import guarded_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

_CLI_DEADLINE = 30.0
YAML = """\
name: {name}
lanes: [interactive, batch]
stages:
- {{stage_id: 0, name: only, engine: sim, final_output: true, final_output_type: text}}
"""


def _spec(name: str, slots: int = 1) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0,
        name="only",
        engine="sim",
        slots=slots,
        engine_args={"latency": 0.01},
        final_output=True,
        final_output_type="text",
    )
    return PipelineSpec(name=name, stages=(stage,))


async def test_specification_is_found_and_the_broker_ready_when_deployed(connection: Connection, pipeline: str) -> None:
    spec = _spec(pipeline)
    deployment = await deploy_pipeline(connection, spec)

    assert deployment.stored
    assert deployment.changes
    assert await load_deployed(connection, pipeline) == spec
    assert await plan(connection, layout_of(spec)) == []


async def test_revision_stays_when_the_same_is_deployed_again(connection: Connection, pipeline: str) -> None:
    first = await deploy_pipeline(connection, _spec(pipeline))
    again = await deploy_pipeline(connection, _spec(pipeline))

    assert (again.stored, again.changes) == (False, ())
    assert again.deployed.revision == first.deployed.revision


async def test_new_version_is_found_when_it_replaces_another(connection: Connection, pipeline: str) -> None:
    first = await deploy_pipeline(connection, _spec(pipeline))
    second = await deploy_pipeline(connection, _spec(pipeline, slots=4))

    assert second.deployed.revision > first.deployed.revision
    assert (await load_deployed(connection, pipeline)).stages[0].slots == 4


async def test_added_adapters_stay_where_stages_take_them_when_deployed_anew(
    connection: Connection, pipeline: str
) -> None:
    def spec(slots: int = 1, **engine_args: object) -> PipelineSpec:
        only = msgspec.structs.replace(_spec(pipeline, slots).stages[0], engine="vllm", engine_args=engine_args)
        return PipelineSpec(name=pipeline, stages=(only,))

    def added(deployed: PipelineSpec) -> PipelineSpec:
        stage = msgspec.structs.replace(deployed.stages[0], added_adapters={"pirate": "/pirate"})
        return msgspec.structs.replace(deployed, stages=(stage,))

    first = await deploy_pipeline(connection, spec(enable_lora=True))
    assert first.deployed.spec.adapters == ()
    changed = await change_deployed(connection, pipeline, added)
    again = await deploy_pipeline(connection, spec(enable_lora=True))
    assert (again.stored, again.deployed.spec) == (False, changed)

    other = await deploy_pipeline(connection, spec(slots=4, lora_modules={"pirate": "/declared", "poet": "/poet"}))
    assert other.deployed.spec == await load_deployed(connection, pipeline)
    assert other.deployed.spec.stages[0].adapters == {"pirate": "/pirate", "poet": "/poet"}

    without = await deploy_pipeline(connection, spec())
    assert without.deployed.spec.adapters == ()


async def test_nothing_is_touched_when_the_specification_is_senseless(connection: Connection, pipeline: str) -> None:
    with pytest.raises(PipelineError, match=r"stages\[0\].slots"):
        await deploy_pipeline(connection, _spec(pipeline, slots=0))
    assert await connection.find(f"STREAM.INFO.{stores.work_stream(pipeline)}") is None


async def test_name_is_not_needed_when_only_one_is_deployed(own_server: EmbeddedServer) -> None:
    async with connect(own_server.url, name="test") as connection, asyncio.timeout(30):
        with pytest.raises(PipelineError, match="no pipeline is deployed; run `omnibus pipeline deploy`"):
            await load_deployed(connection)
        with pytest.raises(PipelineError, match="pipeline 'one' is not deployed; run"):
            await load_deployed(connection, "one")

        await deploy_pipeline(connection, _spec("one"))
        assert (await load_deployed(connection)).name == "one"

        await deploy_pipeline(connection, _spec("two"))
        with pytest.raises(PipelineError, match=r"so name one \(commands: --pipeline NAME\): one, two"):
            await load_deployed(connection)
        with pytest.raises(PipelineError, match="pipeline 'three' is not deployed; deployed are one, two"):
            await load_deployed(connection, "three")
        with pytest.raises(InvalidName):
            await load_deployed(connection, "no.such.name")


def _bad_entries() -> dict[str, bytes]:
    """Keys and values that somebody may write into the bucket, none of which can be served."""
    good = msgspec.to_builtins(_spec("senseless"))
    stage = good["stages"][0]
    return {
        "newer": msgspec.msgpack.encode({"name": "newer", "stages": [], "unheard_of": 1}),
        "garbage": b"\xff\xff",
        "empty": b"",
        "nested": b"\x91" * 100_000 + b"\xc0",
        "senseless": msgspec.msgpack.encode({**good, "stages": [{**stage, "slots": 0}]}),
        "stranger": msgspec.msgpack.encode(
            {**good, "name": "stranger", "stages": [{**stage, "engine": "no-such-engine"}]}
        ),
        "other-name": msgspec.msgpack.encode({**good, "name": "good"}),
        "extension": msgspec.msgpack.encode(
            {**good, "name": "extension", "stages": [{**stage, "engine_args": {"x": msgspec.msgpack.Ext(5, b"x")}}]}
        ),
    }


async def test_others_are_found_when_one_is_unreadable_or_deleted(own_server: EmbeddedServer) -> None:
    async with connect(own_server.url, name="test") as connection, ClusterView(connection) as pipelines:
        await deploy_pipeline(connection, _spec("good"))
        bucket = Bucket(connection, stores.PIPELINES_BUCKET)
        for key, value in _bad_entries().items():
            await bucket.put(key, value)
        await Bucket(connection, stores.replicas_bucket("good")).put("0.r1", b"garbage")
        await deploy_pipeline(connection, _spec("gone"))
        await bucket.delete("gone")

        assert [found.spec.name for found in await list_deployed(connection)] == ["good"]
        assert (await load_deployed(connection)).name == "good"
        assert await _names(pipelines) == ["good"]
        assert await load_deployed(connection, "good") == _spec("good"), "another key has taken its name"
        with pytest.raises(PipelineError, match=r"'senseless' cannot be read: .*slots: must be from 1"):
            await load_deployed(connection, "senseless")
        with pytest.raises(PipelineError, match="'no-such-engine' is not one of"):
            await load_deployed(connection, "stranger")
    for command in (["status", "--json"], ["pipeline", "list", "--json"], ["nats", "plan"]):
        out, _ = await _omnibus(*command, "--nats", own_server.url)
        assert "garbage" not in out


async def test_orchestrator_serves_on_when_its_specification_becomes_senseless(
    connection: Connection, pipeline: str
) -> None:
    spec = _spec(pipeline)
    await deploy_pipeline(connection, spec)
    running = asyncio.create_task(DeployedOrchestrator(connection, spec).run(), name="orchestrator")
    try:
        async with replica(connection, spec), Producer(connection) as producer:
            bucket = Bucket(connection, stores.PIPELINES_BUCKET)
            for value in _bad_entries().values():
                await bucket.put(pipeline, value)
                result = await (await producer.submit(spec, Request(prompt="still here"))).result()
                assert result.state is RequestState.DONE
            await bucket.delete(pipeline)  # other tests' commands would warn of it
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait({running})


async def _names(pipelines: ClusterView) -> list[str]:
    return [spec.name for spec in await pipelines.all()]


async def _omnibus(*args: str, status: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command line, which must exit with `status`."""
    command = (sys.executable, "-m", "omnibus.cli", *args)
    ran = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=_CLI_DEADLINE, check=False
    )
    assert ran.returncode == status, ran.stderr
    return ran.stdout, ran.stderr


async def test_commands_deploy_list_plan_and_apply_when_a_broker_runs(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    file = tmp_path / "first.yaml"
    file.write_text(YAML.format(name="first"))
    at = ("--nats", own_server.url)

    _, err = await _omnibus("nats", "plan", *at, status=2)
    assert err == "omnibus: no pipeline is deployed; name a file or a shipped pipeline\n"
    planned, _ = await _omnibus("nats", "plan", str(file), *at)
    assert "create stream OMNI_first_WORK" in planned
    assert "create consumer of OMNI_first_WORK stage-0-batch" in planned
    applied, _ = await _omnibus("nats", "apply", str(file), *at)
    assert applied == planned
    assert await _omnibus("nats", "plan", str(file), *at) == ("nothing to change\n", "")

    out, _ = await _omnibus("pipeline", "deploy", str(file), *at)
    assert out == "first deployed, revision 1\n"
    out, _ = await _omnibus("pipeline", "deploy", str(file), *at)
    assert out == "first was deployed already, revision 1\n"
    assert await _omnibus("nats", "plan", *at) == ("nothing to change\n", "")
    assert await _omnibus("nats", "apply", "first", *at) == ("nothing had to change\n", "")
    out, _ = await _omnibus("pipeline", "list", *at)
    assert [line.split() for line in out.splitlines()] == [
        ["pipeline", "revision", "outputs", "stages"],
        ["first", "1", "text", "only"],
    ]
    out, _ = await _omnibus("pipeline", "list", "--json", *at)
    assert json.loads(out) == [{"name": "first", "revision": 1, "modalities": ["text"], "stages": ["only"]}]


async def test_shared_bucket_is_created_once_when_two_pipelines_are_applied(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    files = []
    for name in ("first", "second"):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(YAML.format(name=name))

    out, _ = await _omnibus("nats", "apply", *map(str, files), "--nats", own_server.url)

    assert out.count("omni-pipelines") == 1
    assert "OMNI_first_WORK" in out
    assert "OMNI_second_WORK" in out


async def test_command_says_what_to_do_when_no_broker_answers(tmp_path: Path) -> None:
    file = tmp_path / "first.yaml"
    file.write_text(YAML.format(name="first"))
    _, err = await _omnibus("pipeline", "deploy", str(file), "--nats", "nats://127.0.0.1:9", status=1)
    assert err.startswith("omnibus: cannot reach NATS at nats://127.0.0.1:9")
    assert "OMNIBUS_NATS_URL" in err


async def test_orchestrator_admits_by_the_new_version_when_another_is_deployed(
    connection: Connection, pipeline: str
) -> None:
    """Without a restart; a request on its way goes on through the stages that it was admitted with."""
    one = PipelineSpec(name=pipeline, stages=(sim(0, final="text"),), deadline=20.0)
    two = PipelineSpec(name=pipeline, stages=(sim(0), sim(1, 0, final="text")), deadline=20.0)
    await deploy_pipeline(connection, one)
    running = asyncio.create_task(DeployedOrchestrator(connection, one).run(), name="orchestrator")
    ledger = Ledger(connection, pipeline)
    try:
        await connection.js_publish(subjects.request(pipeline, "before"), b'{"prompt": "x"}')
        await eventually(lambda: ledger.read("before"), what="admitted")
        await deploy_pipeline(connection, two)
        numbers = itertools.count()

        async def admitted_anew() -> bool:
            rid = f"after-{next(numbers)}"
            await connection.js_publish(subjects.request(pipeline, rid), b'{"prompt": "x"}')
            entry = await eventually(lambda: ledger.read(rid), 10, what="admitted")
            return len(entry.record.ticket.route.stages) == 2

        await eventually(admitted_anew, 10, what="the new version is served")
        async with replica(connection, two, two.stages[0]), Producer(connection) as producer:

            async def done() -> bool:
                return (await producer.result(pipeline, "before")).state is RequestState.DONE

            await eventually(done, 10, what="the request of the former version is done")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_pipeline_is_deleted_with_all_it_has_unless_requests_are_open(
    connection: Connection, pipeline: str
) -> None:
    spec = _spec(pipeline)
    await deploy_pipeline(connection, spec)
    async with Producer(connection) as producer:
        await producer.submit(spec, Request(prompt="x"), rid="a")
        with pytest.raises(PipelineError, match="open requests"):
            await delete_pipeline(connection, spec)
        assert await load_deployed(connection, pipeline) == spec
        await producer.cancel(pipeline, "a")
    await delete_pipeline(connection, spec)
    await delete_pipeline(connection, spec)
    with pytest.raises(PipelineError, match="is not deployed"):
        await load_deployed(connection, pipeline)
    assert {str(change.action) for change in await plan(connection, layout_of(spec))} == {"create"}


async def test_files_and_batches_of_all_stay_when_an_operator_deletes_a_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"kept"

    with guarded_server(tmp_path) as guarded:
        for name, value in guarded.environment().items():
            monkeypatch.setenv(name, value)
        await _omnibus("pipeline", "deploy", str(guarded.file), "--nats", guarded.url)
        access = guarded.access("operator")
        async with connect(guarded.url, name="owner", role="operator", access=access, deadline=30) as connection:
            spec = await load_deployed(connection, "guarded")
            files, batches = FileStore(connection, quota=1 << 20), BatchStore(connection)
            file = await files.add("ada", pieces(), filename="a.jsonl", purpose="batch", lifetime=600.0)
            batch = BatchRecord(
                id=await batches.new_id(), tenant="ada", endpoint="/v1/embeddings", input_file_id=file.id,
                completion_window="24h", created=batches.clock.now(), expires=batches.clock.now() + 600.0,
            )  # fmt: skip
            await batches.create(batch)
            await _omnibus("pipeline", "delete", "guarded", "--yes", "--nats", guarded.url)
            kept = b"".join([piece async for piece in files.read(file)])
            assert (kept, await batches.find("ada", batch.id)) == (b"kept", batch)
            missing = {change.target.name for change in await plan(connection, layout_of(spec))}
        assert missing >= set(own_streams(spec)), "all that was the pipeline's own is gone"


async def test_deployment_tells_how_many_replicas_run_the_former_version(connection: Connection, pipeline: str) -> None:
    await deploy_pipeline(connection, _spec(pipeline))
    async with replica(connection, _spec(pipeline)):
        assert (await deploy_pipeline(connection, _spec(pipeline, slots=4))).replicas == 1
    assert (await deploy_pipeline(connection, _spec(pipeline, slots=2))).replicas == 0
