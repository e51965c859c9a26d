"""Balancing policies, which choose among the replicas of a stage. Without I/O; for one event loop."""

from __future__ import annotations

import pkgutil
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire.envelope import Task


class LoadBalancer(ABC):
    """Chooses a replica for a task."""

    @abstractmethod
    def select(self, task: Task | None, replicas: Sequence[ReplicaRecord]) -> int:
        """The index of the chosen one in `replicas`; raises ValueError when there are none.

        The caller passes only replicas that take tasks.
        """


LoadBalancerFactory = Callable[[], LoadBalancer]


class RandomBalancer(LoadBalancer):
    """Any of them, each as likely."""

    def select(self, task: Task | None, replicas: Sequence[ReplicaRecord]) -> int:  # noqa: ARG002 others look at the task
        _require(replicas)
        return random.randrange(len(replicas))  # noqa: S311 no secret


class RoundRobinBalancer(LoadBalancer):
    """One after the other, in the order given; who joins or leaves shifts the turn."""

    def __init__(self, start_index: int = 0) -> None:
        self._turn = start_index

    def select(self, task: Task | None, replicas: Sequence[ReplicaRecord]) -> int:  # noqa: ARG002 others look at the task
        _require(replicas)
        index = self._turn % len(replicas)
        self._turn = index + 1
        return index


class LeastQueueLengthBalancer(LoadBalancer):
    """The one with the fewest tasks; among equals any, each as likely. Raises ValueError for a negative queue length.

    What a replica said at its last heartbeat stays the same until the next: alone, it would draw all tasks of that time
    to one replica. So each choice made here since that heartbeat counts as one task more.
    """

    def __init__(self) -> None:
        self._chosen: dict[tuple[int, str], tuple[float, int]] = {}  # heartbeat, choices since; of who was offered last

    def select(self, task: Task | None, replicas: Sequence[ReplicaRecord]) -> int:  # noqa: ARG002 others look at the task
        _require(replicas)
        if any(replica.queue_length < 0 for replica in replicas):
            raise ValueError("queue_length must be non-negative")
        since = [self._since(replica) for replica in replicas]
        lengths = [replica.queue_length + chosen for replica, chosen in zip(replicas, since, strict=True)]
        least = min(lengths)
        index = random.choice([at for at, length in enumerate(lengths) if length == least])  # noqa: S311 no secret
        self._chosen = {
            (replica.stage_id, replica.replica): (replica.last_heartbeat, chosen + (at == index))
            for at, (replica, chosen) in enumerate(zip(replicas, since, strict=True))
        }
        return index

    def _since(self, replica: ReplicaRecord) -> int:
        """Choices of this replica since its last heartbeat."""
        heartbeat, chosen = self._chosen.get((replica.stage_id, replica.replica), (0.0, 0))
        return chosen if heartbeat == replica.last_heartbeat else 0


def build_load_balancer_factory(policy: LoadBalancingPolicy | str) -> LoadBalancerFactory:
    """Make the factory of a stage's balancer; each stage has its own.

    Raises ValueError for an unknown policy, and for `broker`, under which no balancer chooses.
    """
    try:
        balancer = LoadBalancingPolicy(policy).balancer
    except ValueError as error:
        valid = ", ".join(LoadBalancingPolicy)
        raise ValueError(f"unknown load balancing policy {policy!r} (valid: {valid})") from error
    if balancer is None:
        raise ValueError(f"under the policy {str(policy)!r} no balancer chooses: the replicas share one queue")
    factory: LoadBalancerFactory = pkgutil.resolve_name(balancer)
    return factory


def _require(replicas: Sequence[ReplicaRecord]) -> None:
    if not replicas:
        raise ValueError("replicas must not be empty")
