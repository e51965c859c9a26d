"""The HTTP routes that order replicas about."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.frontdoor.context import Options
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support.front import Front, front

pytestmark = pytest.mark.integration


def spec_of(name: str) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="only", engine="python", model="tests.support.callable_stage:Callable", final_output=True,
        final_output_type="text",
    )  # fmt: skip
    return PipelineSpec(name=name, stages=(stage,))


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline)) as made:
        yield made


async def test_replicas_are_paused_and_resumed(front_door: Front) -> None:
    """Parity: /pause and /resume, as vLLM has them."""
    paused = await front_door.http.post("/pause", params={"mode": "wait"})
    assert (paused.status_code, paused.json()["complete"]) == (200, True)
    assert paused.json()["replicas"] == [{"stage": "only", "replica": "r0", "value": None, "error": None}]
    assert (await front_door.http.get("/is_paused")).json() == {"is_paused": True}
    assert (await front_door.http.post("/resume", params={"stage_ids": [0]})).status_code == 200
    assert (await front_door.http.get("/is_paused")).json() == {"is_paused": False}


async def test_replicas_sleep_and_wake_up(front_door: Front) -> None:
    """Parity: /v1/omni/sleep and /v1/omni/wakeup."""
    asleep = await front_door.http.post("/v1/omni/sleep", json={"stage_ids": [0], "level": 1})
    assert (asleep.status_code, asleep.json()["method"]) == (200, "sleep")
    assert (await front_door.http.post("/resume")).status_code == 400
    assert (await front_door.http.post("/v1/omni/wakeup")).status_code == 200
    answer = await front_door.openai.chat.completions.create(
        model=front_door.spec.name, messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1/omni/sleep", {"json": {"level": 2}}),
        ("/v1/omni/sleep", {"json": {"stage_ids": [7]}}),
        ("/v1/omni/sleep", {"json": {"level": "deep"}}),
        ("/pause", {"params": {"mode": "keep"}}),
        ("/start_profile", {}),
        ("/stop_profile", {}),
        ("/reset_prefix_cache", {}),
        ("/reset_prefix_cache", {"params": {"stage_ids": [0]}}),
    ],
)
async def test_control_is_refused_when_it_cannot_be_carried_out(
    front_door: Front, path: str, sent: dict[str, object]
) -> None:
    answer = await front_door.http.post(path, **sent)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "sent", "param"),
    [
        ("/pause", {"params": {"stage_id": 0}}, "stage_id"),
        ("/pause", {"params": {"stage_ids": "x"}}, "stage_ids"),
        ("/resume", {"params": {"mode": "wait"}}, "mode"),
        ("/v1/omni/sleep", {"json": {"stages": [0]}}, "stages"),
        ("/v1/omni/wakeup", {"json": {"level": 2}}, "level"),
        ("/reset_prefix_cache", {"params": {"stage": 0}}, "stage"),
    ],
)
async def test_control_is_refused_by_name_when_a_field_is_unknown(
    front_door: Front, path: str, sent: dict[str, object], param: str
) -> None:
    answer = await front_door.http.post(path, **sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await front_door.http.get("/is_paused")).json() == {"is_paused": False}


async def test_unknown_model_is_not_found(front_door: Front) -> None:
    assert (await front_door.http.post("/pause", params={"model": "none"})).status_code == 404


async def test_controls_need_a_key_when_the_front_door_has_one(connection: Connection, pipeline: str) -> None:
    async with front(connection, spec_of(pipeline), Options(api_keys=("admin:secret", "mine"))) as front_door:
        for path in ("/pause", "/resume", "/start_profile", "/stop_profile", "/reset_prefix_cache", "/v1/omni/sleep"):
            refused = await front_door.http.post(path, headers={"Authorization": "Bearer wrong"})
            assert refused.status_code == 401, path
            refused = await front_door.http.post(path, headers={"Authorization": "Bearer mine"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied"), path
        assert (await front_door.http.post("/pause")).status_code == 200
