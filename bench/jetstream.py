"""The Omnibus side of bench.hops: two no-op stages, each replica, the orchestrator and the broker a process of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from omnibus.broker.connection import connect
from omnibus.client.producer import Producer
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request
from tools.serving import Serving, serving

_PIPELINE = """
name: hops-{forwarding}
deadline: 60s
stages:
- {{stage_id: 0, name: first, engine: python, model: "bench.noop:echo", slots: {slots}, engine_args: {{outputs: {{text: text}}}}}}
- {{stage_id: 1, name: second, engine: python, model: "bench.noop:echo", slots: {slots}, engine_args: {{outputs: {{text: text}}}},
   input_sources: [0], final_output: true, final_output_type: text}}
edges:
- {{source: 0, target: 1, forwarding: {forwarding}}}
"""


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the time of one request went, seconds; they add up to the whole."""

    admission: float
    """`submit` called → accepted: checks, deadline timer, record, first task."""
    first_wait: float
    """Accepted → the first stage has started."""
    first_stage: float
    forward: float
    """The first stage has finished → the second has started: acknowledged publishes, routing, the queue, the pull."""
    second_stage: float
    answer: float
    """The second stage has finished → the answer is in hand: event, terminal write, notice, reading the record."""


class JetStreamPipeline:
    """A served pipeline, seen from its producer."""

    def __init__(self, producer: Producer, spec: PipelineSpec, payload: str) -> None:
        self._producer, self._spec = producer, spec
        self._request = Request(prompt=payload, stream=False)

    async def ask(self) -> None:
        """Send one request through both stages and wait for its answer."""
        await self.spans()

    async def spans(self) -> Spans:
        """The same, with where its time went."""
        sent = time.time()
        submission = await self._producer.submit(self._spec, self._request)
        accepted = time.time()
        result = await submission.result()
        answered = time.time()
        result.raise_for_state()
        first, second = sorted(result.timings, key=lambda timing: timing.stage_id)
        return Spans(
            admission=accepted - sent,
            first_wait=first.started - accepted,
            first_stage=first.finished - first.started,
            forward=second.started - first.finished,
            second_stage=second.finished - second.started,
            answer=answered - second.finished,
        )


@contextmanager
def served(forwarding: Forwarding, *, slots: int, folder: Path, nats_url: str | None = None) -> Iterator[Serving]:
    """Serve the two stages. Without `nats_url` an embedded server with the balanced profile is started in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pipeline.yaml"
    file.write_text(_text(forwarding, slots))
    broker = ["--nats", nats_url] if nats_url else ["--nats-port", "0"]
    quiet = ("--no-frontdoor", "--log-level", "warning")
    with serving(str(file), *quiet, *broker, state_dir=folder / "state") as running:
        yield running


@asynccontextmanager
async def pipeline(
    forwarding: Forwarding, payload: str, *, slots: int, nats_url: str
) -> AsyncIterator[JetStreamPipeline]:
    """The producer's side of a served pipeline, when a request has passed."""
    async with connect(nats_url, name="bench-hops") as connection, Producer(connection) as producer:
        side = JetStreamPipeline(producer, parse_pipeline(_text(forwarding, slots)), payload)
        await side.ask()
        yield side


def _text(forwarding: Forwarding, slots: int) -> str:
    return _PIPELINE.format(forwarding=forwarding, slots=slots)
