"""A request made in Python with values of wrong types is refused: what nobody can read would never end."""

from __future__ import annotations

from typing import Any

import pytest

from omnibus.broker.connection import Connection
from omnibus.errors import InvalidRequest, UnknownRequest
from omnibus.ledger.work_queue import WorkQueue
from omnibus.wire.request import Request
from tests.support.flow import line, serving

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "wrong",
    [{"priority": 1.5}, {"trace": {"traceparent": 5}}, {"tenant": 7}, {"sampling_params": {"s0": {"seed": object()}}}],
)
async def test_nothing_is_accepted_when_a_value_has_a_wrong_type(
    connection: Connection, pipeline: str, wrong: dict[str, Any]
) -> None:
    spec = line(pipeline)
    async with serving(connection, spec) as producer:
        with pytest.raises(InvalidRequest, match="malformed request"):
            await producer.submit(spec, Request(prompt="a red circle", **wrong), rid="wrong")

        assert (await WorkQueue(connection, pipeline).traffic()).messages == 0
        with pytest.raises(UnknownRequest):
            await producer.result(pipeline, "wrong")
