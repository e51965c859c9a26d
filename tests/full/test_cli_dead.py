"""`omnibus dead`, as an operator types it."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from omnibus.broker.connection import Connection
from omnibus.ledger.dead_letters import DeadLetters
from omnibus.registry.deployed_pipelines import deploy_pipeline
from tests.support.dying import bury, faulty, healthy
from tests.support.flow import serving
from tests.support.served import omnibus

pytestmark = pytest.mark.integration


async def dead(connection: Connection, pipeline: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ("dead", *words, "--pipeline", pipeline)
    return await asyncio.to_thread(omnibus, *command, nats=connection.url, timeout=60.0)


async def test_operator_sees_runs_again_and_drops_what_died(connection: Connection, pipeline: str) -> None:
    spec = healthy(pipeline)
    await deploy_pipeline(connection, spec)
    dead_letter = await bury(connection, spec, "a")
    await bury(connection, spec, "b")
    replica = dead_letter.record.attempts[0].replica

    listed, shown = await asyncio.gather(
        dead(connection, pipeline, "list"), dead(connection, pipeline, "show", "a", "--json")
    )
    head, *rows = [line.split("  ") for line in listed.stdout.splitlines()]
    assert head[0].startswith("request id")
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [("a", replica), ("b", replica)]
    facts = json.loads(shown.stdout)
    assert (facts["state"], facts["attempts"], facts["code"]) == ("failed", 2, "engine_error")
    assert [(one["delivery"], one["replica"], one["message"]) for one in facts["history"]] == [
        (1, replica, "configured to fail"),
        (2, replica, "configured to fail"),
    ]

    async with serving(connection, faulty(spec)):
        again = await dead(connection, pipeline, "retry", "b", "--wait")
    assert (again.returncode, again.stdout.startswith("b: failed, "), "configured to fail" in again.stdout) == (
        1,
        True,
        True,
    )

    async with serving(connection, spec):
        again = await dead(connection, pipeline, "retry", "a", "nobody", "--wait")
    assert again.stdout == "a: done\n"
    assert (again.returncode, "nobody: no dead letter" in again.stderr) == (2, True)

    dropped = await dead(connection, pipeline, "drop", "--all")
    assert (dropped.stdout, dropped.returncode) == ("b: dropped\n", 0)
    assert await DeadLetters(connection, pipeline).read("b") is None
