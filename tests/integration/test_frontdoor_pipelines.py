"""A deployed pipeline is served as soon as it is deployed, and while the broker is away."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.client.cluster_view import ClusterView
from omnibus.errors import InvalidRequest, UnknownModel
from omnibus.frontdoor.served import ServedModels
from omnibus.registry.deployed_pipelines import delete_pipeline, deploy_pipeline
from omnibus.wire import stores
from tests.support.front import front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def test_a_pipeline_is_served_when_it_is_deployed_under_a_running_front_door(
    connection: Connection, pipeline: str
) -> None:
    async with ClusterView(connection) as pipelines:
        models = ServedModels(pipelines, {})
        with pytest.raises(UnknownModel):
            await models.find(pipeline)
        await deploy_pipeline(connection, omni_sim(pipeline))
        await eventually(lambda: _serves(models, pipeline))
        assert (await models.find(pipeline)).spec.name == pipeline


async def test_a_pipeline_stays_known_while_the_broker_is_away(own_server: EmbeddedServer, pipeline: str) -> None:
    async with connect(own_server.url, name="test") as connection, ClusterView(connection) as pipelines:
        models = ServedModels(pipelines, {})
        await deploy_pipeline(connection, omni_sim(pipeline))
        await eventually(lambda: _serves(models, pipeline))
        await own_server.kill()
        await eventually(lambda: not connection.connected)
        assert await _serves(models, pipeline)


async def test_a_model_may_be_left_out_when_there_is_no_choice(own_server: EmbeddedServer, pipeline: str) -> None:
    async with connect(own_server.url, name="test") as connection, ClusterView(connection) as pipelines:
        models = ServedModels(pipelines, {"alias": pipeline})
        with pytest.raises(InvalidRequest, match="none"):
            await models.find(None)
        await deploy_pipeline(connection, omni_sim(pipeline))
        await eventually(lambda: _serves(models, "alias"))
        assert (await models.find(None, modality="image")).model == "alias"
        with pytest.raises(InvalidRequest):
            await models.find(None, modality="smell")
        await deploy_pipeline(connection, omni_sim(f"{pipeline}-2"))
        await eventually(lambda: _serves(models, f"{pipeline}-2"))
        with pytest.raises(InvalidRequest, match=f"alias, {pipeline}-2"):
            await models.find(None)


async def test_each_pipeline_comes_once_by_the_first_of_its_names_when_none_is_named(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    async with connect(own_server.url, name="test") as connection, ClusterView(connection) as pipelines:
        models = ServedModels(pipelines, {"zebra": pipeline, "ant": pipeline, "bee": pipeline})
        for name in (pipeline, f"{pipeline}-2"):
            await deploy_pipeline(connection, omni_sim(name))
        await eventually(lambda: _serves(models, f"{pipeline}-2"))
        assert [(one.model, one.spec.name) for one in await models.pipelines()] == sorted(
            [("ant", pipeline), (f"{pipeline}-2", f"{pipeline}-2")]
        )
        assert [(one.model, one.spec.name) for one in await models.pipelines("zebra")] == [("zebra", pipeline)]
        with pytest.raises(UnknownModel):
            await models.pipelines("wasp")


async def test_pipelines_are_listed_when_the_replicas_of_some_cannot_be_read(
    connection: Connection, pipeline: str
) -> None:
    closed = tuple(omni_sim(f"{pipeline}-{number}") for number in range(3))
    async with front(connection, omni_sim(pipeline), idle=closed) as front_door:
        for one in closed:
            await _hide_replicas(connection, one.name)
        async with asyncio.timeout(5):  # one after the other they would take 2 s each
            listed = await front_door.http.get("/v1/models")
        assert listed.status_code == 200, listed.text
        ready = {model["id"]: model["ready"] for model in listed.json()["data"]}
        assert ready == {pipeline: True, **{one.name: False for one in closed}}
        assert listed.json()["data"][0]["id"] == pipeline
        alone = await front_door.http.get(f"/v1/models/{closed[0].name}")
        assert (alone.status_code, alone.json()["ready"]) == (200, False)


async def test_nothing_is_held_up_when_the_replicas_of_one_pipeline_cannot_be_read(
    connection: Connection, pipeline: str
) -> None:
    readable, closed = omni_sim(pipeline), omni_sim(f"{pipeline}-2")
    for one in (readable, closed):
        await deploy_pipeline(connection, one)
    await _hide_replicas(connection, closed.name)
    async with ClusterView(connection) as pipelines:
        looking = asyncio.create_task(pipelines.replicas(closed), name="look")
        await eventually(lambda: _watches(closed.name))
        assert pipeline in [spec.name for spec in await pipelines.all()]
        assert await pipelines.replicas(readable) == []
        assert not looking.done()
        looking.cancel()
        await asyncio.wait({looking}, timeout=10)
        assert not _watches(closed.name), "a look that was given up leaves nothing"


async def test_a_view_is_closed_when_its_pipeline_is_deleted(connection: Connection, pipeline: str) -> None:
    kept, deleted = omni_sim(pipeline), omni_sim(f"{pipeline}-2")
    for one in (kept, deleted):
        await deploy_pipeline(connection, one)
    async with ClusterView(connection) as pipelines:
        await eventually(lambda: _serves(ServedModels(pipelines, {}), deleted.name))
        for one in (kept, deleted):
            assert await pipelines.replicas(one) == []
        await delete_pipeline(connection, deleted)
        await eventually(lambda: not _watches(deleted.name))
        assert _watches(kept.name)
        await deploy_pipeline(connection, deleted)
        await eventually(lambda: _serves(ServedModels(pipelines, {}), deleted.name))
        assert await pipelines.replicas(deleted) == []
    assert not _watches(kept.name)
    assert not _watches(deleted.name)


async def _hide_replicas(connection: Connection, name: str) -> None:
    await connection.api(f"STREAM.DELETE.KV_{stores.replicas_bucket(name)}")


def _watches(name: str) -> bool:
    """Whether anybody here follows the replicas of a pipeline."""
    return f"watch {stores.replicas_bucket(name)}" in [task.get_name() for task in asyncio.all_tasks()]


async def _serves(models: ServedModels, model: str) -> bool:
    return model in [found.model for found in await models.all()]
