"""A durable pull consumer of a work queue, with the sharp edges of the real one.

Acks are not fenced: that of an old delivery removes the message under a newer one. A NAK of an old delivery has it
delivered once more. A lease that nobody renews ends, and the message goes to somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simulation.streams import Stored, Stream, matches

if TYPE_CHECKING:
    from tests.simulation.broker import Broker
    from tests.simulation.pulling import SimPuller

_FORGOTTEN = 0.5
"""Share of the leases that a killed server does not know when it is started again."""


@dataclass(slots=True)
class _Pending:
    """A message that somebody has in hand."""

    ends: float


class Consumer:
    """One durable consumer: a pull gets the next message, and the message again when it is not acknowledged."""

    def __init__(self, broker: Broker, stream: Stream, config: Mapping[str, Any]) -> None:
        self._broker, self._stream, self.config = broker, stream, config
        self.name, self._filter = config["durable_name"], config["filter_subject"]
        self._ack_wait = config["ack_wait"] / 1e9
        self._next_seq, self._count = 1, 0
        self._again: list[int] = []
        self._pending: dict[int, _Pending] = {}
        self._delivered: dict[int, int] = {}
        self.pullers = broker.pullers[stream.name, self.name]

    @property
    def in_hand(self) -> int:
        return len(self._pending)

    @property
    def reached(self) -> int:
        """The last sequence that was delivered."""
        return self._next_seq - 1

    def waiting(self) -> int:
        return len(self._again) + sum(1 for _ in self._stream.after(self._next_seq, self._filter))

    def wants(self, subject: str) -> bool:
        return matches(self._filter, subject)

    def offer(self) -> None:
        """Give what waits to those who wait."""
        while (puller := self._free()) is not None:
            stored = self._take()
            if stored is None:
                return
            self._deliver(stored, puller)

    def answer(self, seq: int, word: bytes) -> None:
        """An ack, a NAK (with a delay in seconds) or a renewal for a message; the delivery it is for is not looked at."""
        if word.startswith(b"+ACK"):
            self._stream.remove(seq)
        elif word.startswith(b"+WPI"):
            self._renew(seq)
        elif word.startswith(b"-NAK") and seq in self._pending:
            self._return_excess(seq, _delay_of(word))

    def forget(self, seq: int) -> None:
        """The message has left the stream."""
        self._pending.pop(seq, None)
        self._delivered.pop(seq, None)
        if seq in self._again:
            self._again.remove(seq)

    def forget_leases(self) -> None:
        """Of about half of what is in hand; those messages go to whoever asks next."""
        for seq in [seq for seq in self._pending if self._broker.rng.random() < _FORGOTTEN]:
            self._return_excess(seq, 0.0)

    def _free(self) -> SimPuller | None:
        free = [puller for puller in self.pullers if puller.wants(self.name)]
        return self._broker.rng.choice(free) if free else None

    def _take(self) -> Stored | None:
        if self._again:
            return self._stream.messages[self._again.pop(0)]
        stored = next(self._stream.after(self._next_seq, self._filter), None)
        if stored is not None:
            self._next_seq = stored.seq + 1
        return stored

    def _deliver(self, stored: Stored, puller: SimPuller) -> None:
        now = self._broker.loop.time()
        count = self._delivered.get(stored.seq, 0) + 1
        self._delivered[stored.seq] = count
        self._count += 1
        self._lend(stored.seq, now + self._ack_wait)
        moment = int((stored.at) * 1e9)
        reply = f"$JS.ACK.{self._stream.name}.{self.name}.{count}.{stored.seq}.{self._count}.{moment}.{self.waiting()}"
        puller.send(self.name, stored, reply)

    def _lend(self, seq: int, ends: float) -> None:
        self._pending[seq] = _Pending(ends)
        self._broker.at(ends, lambda: self._expire(seq, ends))

    def _renew(self, seq: int) -> None:
        if seq in self._pending:
            self._lend(seq, self._broker.loop.time() + self._ack_wait)

    def _expire(self, seq: int, ends: float) -> None:
        pending = self._pending.get(seq)
        if pending is not None and pending.ends == ends:
            self._broker.trace("broker", f"lease ends: {self.name} #{seq}")
            self._return_excess(seq, 0.0)

    def _return_excess(self, seq: int, delay: float) -> None:
        if delay > 0.0:
            self._lend(seq, self._broker.loop.time() + delay)
            return
        del self._pending[seq]
        self._again.append(seq)
        self.offer()


def _delay_of(word: bytes) -> float:
    return int(word.partition(b":")[2].strip(b" }")) / 1e9 if b":" in word else 0.0
