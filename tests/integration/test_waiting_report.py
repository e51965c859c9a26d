"""The lines that somebody reads who waits for a request, on a real server."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker.connection import Connection
from omnibus.cli.waiting_report import WaitingReport
from omnibus.registry.deployed_pipelines import deploy_pipeline
from tests.support.dying import HELLO, faulty, healthy
from tests.support.flow import serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def test_each_further_attempt_is_shown_once_with_its_reason_when_a_stage_fails_twice(
    connection: Connection, pipeline: str
) -> None:
    spec, lines = healthy(pipeline, max_attempts=4, deadline=60.0, heartbeat_timeout=10.0), list[str]()
    await deploy_pipeline(connection, spec)
    failing = faulty(spec, fail_on={"attempts": (1, 2)}, hang_on={"attempts": (3,)})
    async with serving(connection, failing, ready=30.0) as producer:
        submission = await producer.submit(spec, HELLO, rid="twice")
        report = WaitingReport(producer, spec, HELLO, "twice", lines.append)
        reporting = asyncio.create_task(report.run(), name="report")
        await eventually(lambda: len(lines) >= 2, 30.0)
        await asyncio.wait({reporting}, timeout=3.0)  # another look
        reporting.cancel()
        await producer.cancel(spec.name, submission.rid)
    assert lines == [
        f"stage 's0': attempt {number} of 4; the one before failed: configured to fail" for number in (2, 3)
    ]
