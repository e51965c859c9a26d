"""A replica in a process: url, name, specification as JSON. With "crash-before-ack" too, it dies before its first ack."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import msgspec
import uvloop

from omnibus.broker.connection import connect
from omnibus.broker.delivery import Delivery
from omnibus.lineage import die_with_parent
from omnibus.observability.logging import configure_logging
from omnibus.pipeline.spec import PipelineSpec
from omnibus.workers.replica import Replica, ReplicaOptions


def crash_before_first_ack() -> None:
    """Everything that precedes an ack happens; then the process is gone, as by kill -9."""

    async def crash(_self: Delivery) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Delivery.ack = crash  # type: ignore[method-assign]


async def main(url: str, name: str, spec: PipelineSpec) -> None:
    async with connect(url, name=name, role="worker") as conn:
        replica = Replica(conn, spec, spec.stages[0], ReplicaOptions(instance=name))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, replica.drain)
        await replica.run()


if __name__ == "__main__":
    die_with_parent()
    configure_logging("info", "json")
    if "crash-before-ack" in sys.argv:
        crash_before_first_ack()
    uvloop.run(main(sys.argv[1], sys.argv[2], msgspec.json.decode(sys.argv[3], type=PipelineSpec)))
