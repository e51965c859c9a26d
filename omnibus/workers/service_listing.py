"""A replica as a service of NATS, so that `nats micro ls`, `info` and `stats` show it (NATS ADR-32)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription
from omnibus.errors import BrokerDenied, BrokerError
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import stores, subjects
from omnibus.workers.task_telemetry import TaskTelemetry

_TYPE = "io.nats.micro.v1.{}_response"


class ServiceListing:
    """Answers what NATS asks services. The tasks themselves come from the queue: nothing is served on the endpoint's subject."""

    def __init__(self, connection: Connection, spec: PipelineSpec, stage: StageSpec, telemetry: TaskTelemetry) -> None:
        self._connection, self._spec, self._stage, self._telemetry = connection, spec, stage, telemetry
        self._name = subjects.service(spec.name, stage.stage_id)
        self._answers: dict[str, Callable[[], dict[str, Any]]] = {
            "PING": dict,
            "INFO": self._info,
            "STATS": self._stats,
        }
        self._subscriptions: list[Subscription] = []
        self._identity: dict[str, Any] = {}
        self._started = _text_of(datetime.now(UTC))

    async def listen(self, record: ReplicaRecord) -> None:
        """Answer as this replica; again after its id has changed. Nothing where credentials made before this do not allow it."""
        await self.close()
        unique = hashlib.sha256(record.instance.encode()).hexdigest()[:8]
        self._identity = {
            "name": self._name, "id": f"{record.replica}-{unique}", "version": record.versions["omnibus"],
            "metadata": {
                "pipeline": self._spec.name, "stage": self._stage.name, "replica": record.replica,
                "engine": self._stage.engine, "host": record.host, "pid": str(record.pid), "slots": str(record.slots),
            },
        }  # fmt: skip
        with suppress(BrokerDenied):
            for subject in subjects.service_questions(self._name, self._identity["id"]):
                self._subscriptions.append(await self._connection.subscribe(subject, self._answer))

    async def close(self) -> None:
        """Answer no more; idempotent."""
        while self._subscriptions:
            await self._subscriptions.pop().unsubscribe()

    def _answer(self, message: ReceivedMessage) -> None:
        kind = message.subject.split(".")[1]
        if kind not in self._answers or not message.reply:
            return
        found = {"type": _TYPE.format(kind.lower()), **self._identity, **self._answers[kind]()}
        with suppress(BrokerError):  # who asks, asks again
            self._connection.send(message.reply, msgspec.json.encode(found))

    def _endpoint(self) -> dict[str, Any]:
        lane = self._spec.stage_lanes[0]
        return {
            "name": "tasks",
            "subject": subjects.tasks_filter(self._spec.name, self._stage.stage_id, lane),
            "queue_group": stores.stage_consumer(self._stage.stage_id, lane),
            "metadata": {},
        }

    def _info(self) -> dict[str, Any]:
        about = f"a replica of stage {self._stage.stage_id} {self._stage.name!r} of {self._spec.name}"
        return {"description": about, "endpoints": [self._endpoint()]}

    def _stats(self) -> dict[str, Any]:
        tasks = self._telemetry
        spent = int(tasks.busy_seconds * 1e9)
        counted = {
            "num_requests": tasks.taken, "num_errors": tasks.failed, "last_error": tasks.last_error,
            "data": None, "processing_time": spent, "average_processing_time": spent // max(tasks.taken, 1),
        }  # fmt: skip
        return {"started": self._started, "endpoints": [{**self._endpoint(), **counted}]}


def _text_of(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
