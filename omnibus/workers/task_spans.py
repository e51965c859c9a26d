"""The spans of one task: its wait in the queue and its attempt, with the names of OpenTelemetry's conventions.

`messaging.*` for the way through the queue, `gen_ai.*` for what a model did. The id of an attempt's span follows from the
delivery, so that a later attempt links to the first, whose process may be dead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.errors import OmnibusError
from omnibus.observability.tracing import ActiveSpan, Attributes, span_id_of
from omnibus.pipeline.spec import StageSpec
from omnibus.wire import stores, subjects
from omnibus.wire.envelope import StageResult, Task

_OUTPUT_TYPES = {"text": "text", "image": "image", "audio": "speech"}
"""Modalities by the names that the conventions have for them."""


class TaskSpans:
    """Spans of the tasks of one stage, by its connection's tracing."""

    def __init__(self, connection: Connection, stage: StageSpec) -> None:
        self._connection, self._stage = connection, stage

    @contextmanager
    def attempt(self, task: Task, delivery: Delivery, *, replica: str, now: float) -> Iterator[ActiveSpan]:
        """The span of an attempt, under the request's; beside it that of its wait, which is known of a first delivery alone.

        `now` is by the server's clock.
        """
        ticket, about = task.ticket, self._about(task, delivery, replica)
        tracing = self._connection.tracing
        if delivery.num_delivered == 1:
            settings = {"messaging.operation.name": "receive", "messaging.operation.type": "receive"}
            name, waited = f"receive {self._stage.name}", now - task.published
            tracing.past(name, waited, {**about, **settings}, parent=ticket.trace, kind="consumer")
        links = {} if delivery.former is None else {self._id(task, delivery.former, 1): "redelivery"}
        with tracing.span(
            f"process {self._stage.name}", ticket.trace,
            {**about, "messaging.operation.name": "process", "messaging.operation.type": "process", **self._model(task)},
            kind="consumer", span_id=self._id(task, delivery.stream_seq, delivery.num_delivered), links=links,
        ) as span:  # fmt: skip
            yield span

    @staticmethod
    def conclude(span: ActiveSpan, outcome: StageResult | OmnibusError) -> None:
        """Note what an attempt has come to."""
        if isinstance(outcome, OmnibusError):
            span.fail(outcome.code)
        elif (final := outcome.final) is not None:
            span.note(
                {
                    "gen_ai.usage.input_tokens": final.usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": final.usage.completion_tokens,
                    **({"gen_ai.response.finish_reasons": (final.finish_reason,)} if final.finish_reason else {}),
                }
            )

    @staticmethod
    def _id(task: Task, sequence: int, number: int) -> int:
        ticket = task.ticket
        return span_id_of(ticket.pipeline, ticket.rid, ticket.nonce, ticket.run, task.stage_id, sequence, number)

    def _about(self, task: Task, delivery: Delivery, replica: str) -> Attributes:
        ticket = task.ticket
        return {
            "messaging.system": "nats",
            "messaging.destination.name": stores.work_stream(ticket.pipeline),
            "messaging.destination.subscription.name": stores.stage_consumer(
                task.stage_id, subjects.parse_task(delivery.subject).lane
            ),
            "messaging.message.id": str(delivery.stream_seq),
            "omnibus.pipeline": ticket.pipeline,
            "omnibus.stage": self._stage.name,
            "omnibus.request_id": ticket.rid,
            "omnibus.replica": replica,
            "omnibus.run": ticket.run,
            "omnibus.attempt": delivery.attempts,
        }

    def _model(self, task: Task) -> Attributes:
        final = task.ticket.route[task.stage_id].final
        return {
            "gen_ai.provider.name": "omnibus",
            "gen_ai.operation.name": "chat" if final == "text" else "generate_content",
            "gen_ai.request.model": self._stage.model or self._stage.name,
            **({"gen_ai.output.type": _OUTPUT_TYPES[final]} if final in _OUTPUT_TYPES else {}),
        }
