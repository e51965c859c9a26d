"""Requests with an open input: who sends their segments, and what an answer to them must say."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omnibus.client.producer import Producer
from omnibus.errors import BrokerError, InputClosed, InvalidRequest, Overloaded, RequestConflict, UnknownRequest
from omnibus.wire.request import Segment
from tests.simulation.connection import SimConnection

if TYPE_CHECKING:
    from tests.simulation.world import World

_SPOKEN = re.compile(r"\[(\w+)\]")
_TRIES = 200
"""Times that a sender tries again: it gives up long after everything is healed."""
_PAUSES = (0.0, 0.0, 0.05, 0.7)


@dataclass(frozen=True, slots=True)
class Plan:
    """The segments that the senders of one session agree about, but for what those say."""

    rid: str
    count: int
    numbered: bool
    """Whether each sends every number; otherwise each sends what it has as the next one."""
    ends_bare: bool
    """The end has no text."""
    is_left: bool
    """Nobody ends it."""

    def segments(self, sender: str) -> list[Segment]:
        """The first one has number 1."""
        said = [Segment(prompt=f"[{number}{sender}]") for number in range(1, self.count + 1)]
        if self.is_left:
            return said
        if self.ends_bare or not said:
            return [*said, Segment(end=True)]
        return [*said[:-1], Segment(prompt=said[-1].prompt, end=True)]


def speak(world: World, rid: str) -> None:
    """Have somebody send the segments of a session, others with the same numbers and other words, and again after a death."""
    rng = world.rng
    plan = Plan(rid, rng.randrange(4), rng.random() < 0.75, rng.random() < 0.5, rng.random() < 0.05)
    senders = rng.choice(("a", "a", "aa", "ab"))
    world.checker.inputs.open(plan, is_contested="b" in senders)
    for number, sender in enumerate(senders if plan.numbered else "ab"[: len(senders)]):
        start = rng.random() * 2.0

        async def send(_: object, connection: SimConnection, sender: str = sender, start: float = start) -> None:
            await asyncio.sleep(start)
            await _send(world, connection, plan, sender)

        world.serve(f"{rid}-sender-{number}", send)


async def _send(world: World, connection: SimConnection, plan: Plan, sender: str) -> None:
    async with Producer(connection) as producer:
        for number, segment in enumerate(plan.segments(sender), start=1):
            for _ in range(world.rng.choice((1, 1, 1, 2)) if plan.numbered else 1):  # it may forget that it has sent it
                if not await _is_sent(world, connection, producer, plan, number=number, segment=segment):
                    return
            await asyncio.sleep(world.rng.choice(_PAUSES))


async def _is_sent(
    world: World, connection: SimConnection, producer: Producer, plan: Plan, *, number: int, segment: Segment
) -> bool:
    """Whether a segment of this number is stored; without one for sure the input takes no more."""
    inputs = world.checker.inputs
    for attempt in range(_TRIES):
        if not plan.numbered and segment.prompt is not None:  # nobody knows which of two like ones was stored
            segment = Segment(prompt=f"[{number}{connection.name.rpartition('-')[2]}x{attempt}]", end=segment.end)
        inputs.sent(plan.rid, segment)
        try:
            given = await producer.send_segment(world.spec, plan.rid, segment, number=number if plan.numbered else None)
        except (BrokerError, Overloaded, UnknownRequest):
            await asyncio.sleep(0.3)
            continue
        except InputClosed as error:
            if plan.numbered and plan.rid in world.checker.open_ones():
                world.checker.fail(f"{plan.rid}: segment {number} was refused of an open input: {error}")
            return False
        except RequestConflict:
            inputs.contested(plan.rid, number)
            return True
        except InvalidRequest as error:
            world.checker.fail(f"{plan.rid}: segment {number} was refused: {error}")
            return False
        if not connection.process.dead:
            world.trace(connection.name, f"segment {given} of {plan.rid} is accepted: {segment.prompt}")
            inputs.accept(plan.rid, given, segment)
        return True
    inputs.give_up(plan.rid)
    return False


class OpenInputs:
    """Knows the segments of all sessions. An answer has each accepted one once, in its place."""

    def __init__(self, fail: Callable[[str], None]) -> None:
        self._fail = fail
        self._plans: dict[str, Plan] = {}
        self._contested: set[str] = set()
        self._sent: defaultdict[str, set[str]] = defaultdict(set)
        self._accepted: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self._read: dict[str, list[str]] = {}
        """The words of each answer."""
        self._left: set[str] = set()
        """Sessions that nobody ends."""

    def __contains__(self, rid: str) -> bool:
        return rid in self._plans

    def open(self, plan: Plan, *, is_contested: bool) -> None:
        self._plans[plan.rid] = plan
        if is_contested:
            self._contested.add(plan.rid)
        if plan.is_left:
            self._left.add(plan.rid)

    def sent(self, rid: str, segment: Segment) -> None:
        self._sent[rid].add(_words(segment))

    def give_up(self, rid: str) -> None:
        self._left.add(rid)

    def contested(self, rid: str, number: int) -> None:
        """A sender was refused since another segment has its number."""
        if rid not in self._contested:
            self._fail(f"{rid}: segment {number} was refused for another one, and nobody sends another one")

    def accept(self, rid: str, number: int, segment: Segment) -> None:
        """A sender has its acknowledgement."""
        words = _words(segment)
        if self._accepted[rid].setdefault(number, words) != words:
            self._fail(f"{rid}: two segments were accepted as {number}: {self._accepted[rid][number]}, {words}")
        self._compare(rid)

    def failed(self, rid: str, code: str) -> None:
        """A request has failed: nobody waits in vain for the segments of a sender that goes on."""
        if code == "input_timeout" and rid not in self._left:
            self._fail(f"{rid}: its input counts as silent, and its senders go on")

    def answered(self, rid: str, text: str) -> str:
        """Check what an answer says of the segments; returns it without them."""
        self._read[rid] = _SPOKEN.findall(text)
        self._compare(rid)
        return without_segments(text)

    def _compare(self, rid: str) -> None:
        if rid not in self._read or rid not in self._plans:
            return
        read, plan = self._read[rid], self._plans[rid]
        if len(set(read)) < len(read) or not self._sent[rid].issuperset(read):
            self._fail(f"{rid}: its answer has {read}, and {sorted(self._sent[rid])} were sent")
        if plan.numbered and [int(one[:-1]) for one in read] != list(range(1, plan.count + 1)):
            self._fail(f"{rid}: its answer has {read} of {plan.count} segments")
        for number, words in self._accepted[rid].items():
            if words and read[number - 1 : number] != [words]:
                self._fail(f"{rid}: segment {number}, {words}, was accepted, and its answer has {read}")


def _words(segment: Segment) -> str:
    return str(segment.prompt or "").strip("[]")


def without_segments(text: str) -> str:
    return _SPOKEN.sub("", text)


def ends_of(text: str, prompt: str) -> tuple[int, ...]:
    """Characters before the end of each segment that a text has, the request's own first."""
    return tuple(found.end() for found in re.finditer(rf"{re.escape(prompt)}|{_SPOKEN.pattern}", text))
