"""The table of balancing policies: how the replica of a task is found, and which balancer chooses it. One line a policy."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

_BALANCERS = "omnibus.registry.choice.balancers"


class LoadBalancingPolicy(StrEnum):
    """A value of a stage's `lb_policy`."""

    balancer: str | None
    """`module:class` of the balancer that the publisher of a task asks."""

    BROKER = "broker"
    """Nobody chooses: the first replica with a free slot takes the task."""
    RANDOM = "random", f"{_BALANCERS}:RandomBalancer"
    ROUND_ROBIN = "round-robin", f"{_BALANCERS}:RoundRobinBalancer"
    LEAST_QUEUE_LENGTH = "least-queue-length", f"{_BALANCERS}:LeastQueueLengthBalancer"

    def __new__(cls, name: str, balancer: str | None = None) -> Self:
        policy = str.__new__(cls, name)
        policy._value_, policy.balancer = name, balancer
        return policy

    @property
    def directed(self) -> bool:
        """Whether the publisher of a task chooses its replica."""
        return self.balancer is not None
