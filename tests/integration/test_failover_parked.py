"""A replica that hangs with free slots has asked for more tasks: none of them is given to it once its leases are over."""

from __future__ import annotations

import os
import signal
import sys
import time

import msgspec
import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.embedded import EmbeddedServer
from omnibus.child_process import start_child
from omnibus.registry.presence.replica_view import ReplicaView
from tests.support.stage_bench import REPLICA_PROCESS, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

TIMEOUT = 2.0
"""Heartbeat timeout, and so the lease of a task."""
MARGIN = 1.0


async def test_task_of_a_hung_replica_is_not_given_to_it_again_when_it_has_free_slots(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str
) -> None:
    hang = {"rid": "a", "attempts": [1]}
    async with (
        stage_bench(connection, pipeline, slots=4, heartbeat_timeout=TIMEOUT, hang_on=hang) as bench,
        ReplicaView(connection, pipeline, timeout=TIMEOUT) as view,
    ):
        words = (nats_server.url, "silent", msgspec.json.encode(bench.spec).decode())
        silent = await start_child(sys.executable, "-m", REPLICA_PROCESS, *words)
        try:
            await bench.submit("a")
            await eventually(lambda: any(one.claims for one in view.replicas()), 20, what="the task is in hand")
            async with bench.replica() as other:
                os.kill(silent.pid, signal.SIGSTOP)
                started = time.monotonic()
                result = await bench.result("a", 4 * TIMEOUT)
                assert time.monotonic() - started < TIMEOUT + MARGIN
                assert result.replica == other.record.replica
        finally:
            silent.kill()
            await silent.wait()
