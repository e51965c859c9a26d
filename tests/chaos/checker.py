"""The check of a scenario, from what clients saw and what the system holds: pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.chaos.evidence import Entry, Evidence
from tests.chaos.failover import restarts
from tests.chaos.history import Accepted, Broken, Delta, Ended, Event, Fault, Invoked, Left
from tests.chaos.streams import Flaw, flaws_of

DONE, OPEN = "done", "open"
_UNSEEN = 0.5
"""Seconds by which a client may notice a dead front door before the kill is noted, or after."""


@dataclass(slots=True)
class Operation:
    """One operation, as its client saw it."""

    invoked: Invoked
    rids: set[str] = field(default_factory=set)
    pieces: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken: list[Broken] = field(default_factory=list)
    ends: list[Ended] = field(default_factory=list)
    left: Left | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Counts of a scenario. Clean: nothing in `complaints`."""

    accepted: int = 0
    done: int = 0
    failed: int = 0
    """Ended with a typed error."""
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    repeated: int = 0
    missing: int = 0
    broken: int = 0
    """Streams that ended without an end while their front door lived."""
    wrong: int = 0
    """Answers that say something else than they must."""
    open_idle: int = 0
    """Open records with nothing queued."""
    left_behind: int = 0
    failovers: tuple[float, ...] = ()
    """Seconds from each kill to the start of each killed task elsewhere."""
    complaints: tuple[str, ...] = ()

    @property
    def stream_breaks(self) -> int:
        return self.reordered + self.repeated + self.missing + self.broken

    @property
    def clean(self) -> bool:
        return not self.complaints


@dataclass(frozen=True, slots=True)
class _Finding:
    kind: str
    what: str


def check(events: Iterable[Event], evidence: Evidence, *, may_fail: frozenset[str] = frozenset()) -> Verdict:
    """Check a scenario; `may_fail` are codes of errors that operations may end with though they were not sent to fail.

    Each request counts once a kind. Whoever was told nothing of an acceptance may find its request ended or not there, but
    never open.
    """
    history = tuple(events)
    operations = operations_of(history)
    front_door_deaths = [
        event for event in history if isinstance(event, Fault) and event.target.startswith("frontdoor")
    ]
    findings = [
        *(finding for op in operations.values() for finding in _judge(op, evidence, front_door_deaths, may_fail)),
        *_judge_ledger(evidence),
        *(_Finding("left_behind", name) for name in evidence.left),
    ]
    accepted = {rid for op in operations.values() for rid in op.rids}
    states = [evidence.ledger[rid] for rid in accepted if rid in evidence.ledger]
    return Verdict(
        accepted=len(accepted),
        done=sum(entry.state == DONE for entry in states),
        failed=sum(entry.state not in (DONE, OPEN) and bool(entry.code) for entry in states),
        failovers=restarts(history, evidence),
        complaints=tuple(f"{finding.kind}: {finding.what}" for finding in findings),
        **_counts(findings),
    )


def operations_of(events: Iterable[Event]) -> dict[str, Operation]:
    """Events by operation."""
    operations: dict[str, Operation] = {}
    for event in events:
        match event:
            case Invoked(op=op):
                operations[op] = Operation(event)
            case Accepted(op=op, rid=rid):
                operations[op].rids.add(rid)
            case Delta(op=op, attempt=attempt, text=text):
                operations[op].pieces[attempt].append(text)
            case Broken(op=op):
                operations[op].broken.append(event)
            case Ended(op=op):
                operations[op].ends.append(event)
            case Left(op=op):
                operations[op].left = event
            case Fault():
                pass
    return operations


def _judge(
    op: Operation, evidence: Evidence, front_door_deaths: list[Fault], may_fail: frozenset[str]
) -> Iterator[_Finding]:
    name = op.invoked.op
    if len(op.rids) > 1:
        yield _Finding("duplicated", f"{name} became {sorted(op.rids)}")
    if len(op.ends) > 1:
        yield _Finding("duplicated", f"{name} was told {len(op.ends)} ends")
    if op.left is not None:
        yield _Finding("lost" if op.rids else "unanswered", f"{name}: {op.left.why}")
    entry = None
    for rid in op.rids:
        entry = evidence.ledger.get(rid)
        yield from _judge_end(op, rid, entry, may_fail)
    yield from _judge_answer(op, entry)
    yield from _judge_stream(op, entry, front_door_deaths)


def _judge_end(op: Operation, rid: str, entry: Entry | None, may_fail: frozenset[str]) -> Iterator[_Finding]:
    name = f"{op.invoked.op} ({rid})"
    if entry is None:
        yield _Finding("lost", f"{name} has no record")
    elif entry.state == OPEN:
        yield _Finding("lost", f"{name} is open")
    elif entry.state != DONE and not entry.code:
        yield _Finding("untyped", f"{name} is {entry.state} without an error")
    elif entry.state != DONE and not op.invoked.doomed and entry.code not in may_fail:
        yield _Finding("unexpected", f"{name} is {entry.state}: {entry.code}")
    elif entry.state == DONE and op.invoked.doomed:
        yield _Finding("unexpected", f"{name} is done, and was sent to fail")


def _judge_answer(op: Operation, entry: Entry | None) -> Iterator[_Finding]:
    """The client's end, the ledger's state and the expected end are the same."""
    told = {(end.state, end.text if end.state == DONE else end.code) for end in op.ends}
    if len(told) > 1:
        yield _Finding("duplicated", f"{op.invoked.op} was told {sorted(map(str, told))}")
    if entry is None or entry.state == OPEN:
        return
    must = op.invoked.expects if op.invoked.expects is not None else entry.text
    texts = {end.text for end in op.ends if end.state == DONE and end.text is not None}
    texts |= {entry.text} if entry.state == DONE and entry.text is not None else set()
    for text in texts - {must}:
        yield _Finding("wrong", f"{op.invoked.op} said {text!r}, must say {must!r}")
    for end in op.ends:
        if (end.state == DONE) != (entry.state == DONE):
            yield _Finding("wrong", f"{op.invoked.op} was told {end.state}, the ledger says {entry.state}")


def _judge_stream(op: Operation, entry: Entry | None, front_door_deaths: list[Fault]) -> Iterator[_Finding]:
    must = op.invoked.expects if op.invoked.expects is not None else (entry.text if entry is not None else None)
    ended = {end.attempt for end in op.ends if end.state == DONE}
    for attempt, pieces in op.pieces.items():
        for flaw in () if must is None else flaws_of(must, pieces, complete=attempt in ended):
            yield _Finding(flaw.value, f"{op.invoked.op}, attempt {attempt}: {''.join(pieces)!r}")
    for broken in op.broken:
        if broken.begun and not any(_covers(death, op, broken) for death in front_door_deaths):
            yield _Finding("broken", f"{op.invoked.op}, attempt {broken.attempt}: {broken.why}")


def _covers(death: Fault, op: Operation, broken: Broken) -> bool:
    over = death.until if death.until is not None else death.at
    return op.invoked.at <= over + _UNSEEN and death.at - _UNSEEN <= broken.at <= over + 10 * _UNSEEN


def _judge_ledger(evidence: Evidence) -> Iterator[_Finding]:
    for rid, entry in evidence.ledger.items():
        if entry.ends > 1:
            yield _Finding("duplicated", f"{rid} ended {entry.ends} times")
        if entry.state == OPEN and not entry.queued:
            yield _Finding("open_idle", f"{rid} is open, and nothing of it is queued")
        elif entry.state == OPEN:
            yield _Finding("left_behind", f"the open record of {rid}")


def _counts(findings: Iterable[_Finding]) -> dict[str, int]:
    counted = ("lost", "duplicated", *Flaw, "broken", "wrong", "open_idle", "left_behind")
    return {kind: sum(finding.kind == kind for finding in findings) for kind in map(str, counted)}
