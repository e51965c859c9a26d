"""Faults of one interleaving, drawn from its seed: each seed has a mixture of its own (swarm testing)."""

from __future__ import annotations

import random
from enum import Enum, auto
from typing import TYPE_CHECKING

from omnibus.broker.nats_client import TICK

if TYPE_CHECKING:
    from tests.simulation.connection import SimConnection
    from tests.simulation.world import World

_SLOW = 0.4
"""Longest of the delays that are long, seconds."""


class Fate(Enum):
    """The fate of a request to the broker."""

    FINE = auto()
    LOST = auto()
    """It never arrived."""
    UNANSWERED = auto()
    """It was carried out, and its answer was lost."""


class Faults:
    """Chances of all that may go wrong at one operation; none once `healed`."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world, self._rng = world, rng
        self.active = rng.random() < 0.95
        self.lasts = rng.choice((1.0, 4.0, 9.0))
        """Seconds after which everything is healed."""
        self._lost = self._some(0.0, 0.02, 0.08)
        self._unanswered = self._some(0.0, 0.02, 0.08)
        self._deaths = self._some(0.0, 0.01, 0.03)
        self._unreceived = self._some(0.0, 0.1, 0.5, 1.0)
        self._copied = self._some(0.0, 0.0, 0.1)
        self._slow = self._some(0.0, 0.05, 0.3)
        self.strikes = self._some(0.0, 0.3, 1.5)
        """Cuts, suspensions, restarts and the like, a second."""
        self.engine_errors = self._some(0.0, 0.0, 0.1, 0.5)
        self.stalls = self._some(0.0, 0.0, 0.05, 0.2)
        self.lost_payloads = self._some(0.0, 0.0, 0.2)
        self.undone = self._some(0.0, 0.0, 0.5)
        """Removals that a kill of the broker undoes."""
        self.forgets = rng.random() < 0.15
        """Whether the broker forgets the id of whatever was consumed at once, as it does whenever it is killed."""

    def __str__(self) -> str:
        chances = {name.strip("_"): value for name, value in vars(self).items() if isinstance(value, float) and value}
        return f"active: {self.active}; forgets: {self.forgets}; " + ", ".join(
            f"{name} {value:g}" for name, value in chances.items()
        )

    @property
    def hides_ends(self) -> bool:
        """Whether a process may not know that a request is over, and forward what is left of it once more."""
        return self._unreceived > 0.0 or self.strikes > 0.0 or self._deaths > 0.0 or self._slow > 0.0

    @property
    def loses_words(self) -> bool:
        """Whether core messages may be lost, by themselves or with a connection."""
        return self._unreceived > 0.0 or self.strikes > 0.0

    def heal(self) -> None:
        self.active = False

    def chance(self, probability: float) -> bool:
        return self.active and probability > 0.0 and self._rng.random() < probability

    def latency(self) -> float:
        """Seconds that a message travels."""
        if self.chance(self._slow):
            return self._rng.random() * _SLOW
        return 0.0001 + self._rng.random() * 0.002

    def fate(self) -> Fate:
        if self.chance(self._lost):
            return Fate.LOST
        return Fate.UNANSWERED if self.chance(self._unanswered) else Fate.FINE

    def loses_core(self) -> bool:
        return self.chance(self._unreceived)

    def copies(self) -> int:
        return 2 if self.chance(self._copied) else 1

    def unwritten(self) -> float:
        """Seconds before the end of a connection after which what was sent is lost with it: it waited to be written."""
        return self._rng.random() * TICK if self.active else 0.0

    def dies_before(self, connection: SimConnection, subject: str) -> bool:
        """Whether the process dies now, with what it was about to send."""
        return self._dies(connection, f"before {subject}")

    def dies_after(self, connection: SimConnection, subject: str) -> bool:
        """Whether it dies now that the broker has carried it out."""
        return self._dies(connection, f"after {subject}")

    def _dies(self, connection: SimConnection, where: str) -> bool:
        if connection.process.dead or not self.chance(self._deaths):
            return False
        self._world.kill(connection.process, where)
        return True

    def _some(self, *choices: float) -> float:
        return self._rng.choice(choices)
