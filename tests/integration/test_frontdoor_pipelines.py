"""A deployed pipeline is served as soon as it is deployed, and while the broker is away."""

from __future__ import annotations

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.client.cluster_view import ClusterView
from omnibus.errors import InvalidRequest, UnknownModel
from omnibus.frontdoor.served import ServedModels
from omnibus.registry.deployed_pipelines import deploy_pipeline
from tests.support.front import omni_sim
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


async def _serves(models: ServedModels, model: str) -> bool:
    return model in [found.model for found in await models.all()]
