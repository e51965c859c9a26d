"""A producer in a process: url, specification as JSON, request id, and the texts of its segments; prints the number of each."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from omnibus.broker.connection import connect
from omnibus.client.producer import Producer
from omnibus.lineage import die_with_parent
from omnibus.observability.logging import configure_logging
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Segment


async def main(url: str, spec: PipelineSpec, rid: str, texts: list[str]) -> None:
    async with connect(url, name="sender") as connection, Producer(connection) as producer:
        for number, text in enumerate(texts, start=1):
            print(await producer.send_segment(spec, rid, Segment(prompt=text), number=number), flush=True)
        await asyncio.Event().wait()  # until it is killed


if __name__ == "__main__":
    die_with_parent()
    configure_logging("warning", "json")
    asyncio.run(main(sys.argv[1], msgspec.json.decode(sys.argv[2], type=PipelineSpec), sys.argv[3], sys.argv[4:]))
