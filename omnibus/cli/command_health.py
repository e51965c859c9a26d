"""The health of a command with processes of its own, as `/health` of its metrics port tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from concurrent.futures import Future

from omnibus.broker.connection import Connection
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.workers.elastic_replicas import ElasticReplicas
from omnibus.workers.supervisor import Supervisor

_ANSWER_TIMEOUT = 2.0
"""Seconds after which an event loop that does not answer counts as unwell."""
_STARTING = {"starting": False}

Checks = dict[str, bool]
"""Whether all is well with each of some things."""


class CommandHealth:
    """Whether what a command is for is there. Made on the event loop, read from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._look: Callable[[], Checks] = lambda: _STARTING

    def follow(self, look: Callable[[], Checks]) -> None:
        """From now on what `look` says on the loop; before, the command starts, and is not well."""
        self._look = look

    def answer(self) -> tuple[bool, bytes]:
        """Whether all is well, and a JSON object that says of what. Waits for the loop, for a while; not to be called on it."""
        asked: Future[Checks] = Future()
        try:
            self._loop.call_soon_threadsafe(lambda: asked.set_result(self._look()))
            checks = asked.result(_ANSWER_TIMEOUT)
        except (TimeoutError, RuntimeError):  # which is also the error of a loop that has ended
            checks = {"loop": False}
        well = all(checks.values())
        return well, json.dumps({"status": "ok" if well else "unavailable", **checks}).encode()


def broker_check(connection: Connection) -> Callable[[], Checks]:
    """The broker can be reached."""
    return lambda: {"broker": connection.connected}


def replicas_check(
    connection: Connection, view: ReplicaView, supervisor: Supervisor | ElasticReplicas, names: Collection[str]
) -> Callable[[], Checks]:
    """The broker can be reached, and the replicas that a command keeps are up, or would be but for a pause.

    `names` are those of their processes; of a group whose number changes there are as many as it has now. One that an operator
    ended for good is not missed.
    """

    def look() -> Checks:
        kept = supervisor.running if isinstance(supervisor, ElasticReplicas) else len(set(names) - supervisor.ended)
        up = sum(one.ready and one.instance in supervisor.instances for one in view.replicas())
        return {"broker": connection.connected, "replicas": up >= kept}

    return look
