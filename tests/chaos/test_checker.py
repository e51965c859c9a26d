"""The checker sees each fault that is planted, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.chaos.checker import Verdict, check
from tests.chaos.evidence import Entry, Evidence
from tests.chaos.history import Accepted, Broken, Delta, Ended, Event, Fault, Invoked, Left
from tests.chaos.nemeses.table import Bounds
from tests.chaos.scenario import missed_bounds

pytestmark = pytest.mark.unit

TEXT = "zero one two three four five"
PIECES = ("zero", " one", " two", " three", " four", " five")
ENTRY = Entry(state="done", text=TEXT, started={0: 10.0, 1: 11.0})
CLEAN = Evidence(ledger={"r": ENTRY})


def life(
    pieces: Sequence[str] = PIECES, *, end: Event | None = None, also: Sequence[Event] = (), doomed: bool = False
) -> list[Event]:
    """A streamed operation from beginning to end."""
    return [
        Invoked(at=9.0, op="a", front_door="http-stream", expects=TEXT, doomed=doomed),
        Accepted(at=9.1, op="a", rid="r"),
        *(Delta(at=9.2, op="a", attempt=0, text=piece) for piece in pieces),
        *also,
        end or Ended(at=12.0, op="a", attempt=0, state="done", text=TEXT),
    ]


def judged(events: Sequence[Event], **entry: object) -> Verdict:
    return check(events, Evidence(ledger={"r": replace(ENTRY, **entry)}))


def test_verdict_is_clean_when_nothing_is_wrong() -> None:
    verdict = check(life(), CLEAN)
    assert verdict == Verdict(accepted=1, done=1)
    assert verdict.clean


def test_request_is_lost_when_it_was_accepted_and_has_no_record() -> None:
    assert check(life(), Evidence(ledger={})).lost == 1


def test_request_is_lost_when_it_stays_open() -> None:
    verdict = judged(life(), state="open")
    assert (verdict.lost, verdict.open_idle, verdict.left_behind) == (1, 0, 1)


def test_record_is_idle_when_it_is_open_and_nothing_is_queued() -> None:
    verdict = check([], Evidence(ledger={"nobody-knows": Entry(state="open", queued=False)}))
    assert (verdict.open_idle, verdict.lost, verdict.clean) == (1, 0, False)


def test_request_is_lost_when_its_client_received_no_end() -> None:
    assert check(life(end=Left(at=60.0, op="a", why="no end came in time")), CLEAN).lost == 1


def test_client_is_unanswered_when_nothing_was_accepted_in_time() -> None:
    verdict = check([Invoked(at=1.0, op="a", front_door="raw"), Left(at=50.0, op="a", why="late")], Evidence(ledger={}))
    assert (verdict.accepted, verdict.lost, verdict.clean) == (0, 0, False)


def test_request_is_duplicated_when_its_record_ended_twice() -> None:
    assert judged(life(), ends=2).duplicated == 1


def test_request_is_duplicated_when_one_key_became_two() -> None:
    two = Evidence(ledger={"r": ENTRY, "other": ENTRY})
    assert check(life(also=[Accepted(at=9.5, op="a", rid="other")]), two).duplicated == 1


def test_request_is_duplicated_when_its_client_received_two_ends() -> None:
    assert check(life(also=[Ended(at=11.0, op="a", attempt=0, state="done", text=TEXT)]), CLEAN).duplicated == 1


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ((*PIECES[:2], *PIECES[3:]), "missing"),
        (PIECES[:-1], "missing"),
        ((*PIECES[:3], *PIECES[2:]), "repeated"),
        ((*PIECES, *PIECES), "repeated"),
        ((*PIECES[:2], PIECES[3], PIECES[2], *PIECES[4:]), "reordered"),
    ],
)
def test_stream_is_flawed_when_its_pieces_are(pieces: Sequence[str], kind: str) -> None:
    verdict = check(life(pieces), CLEAN)
    assert getattr(verdict, kind) == verdict.stream_breaks == 1


def test_stream_is_flawed_when_an_earlier_attempt_repeated_a_piece() -> None:
    torn = [Delta(at=9.1, op="a", attempt=1, text=piece) for piece in ("zero", " one", " one")]
    assert check(life(also=[*torn, Broken(at=9.2, op="a", attempt=1, why="cut")]), CLEAN).repeated == 1


def test_stream_is_fine_when_it_begins_anew_with_another_attempt() -> None:
    first = [Delta(at=9.1, op="a", attempt=1, text=piece) for piece in PIECES[:3]]
    assert check(life(also=[*first, Broken(at=9.2, op="a", attempt=1, why="503")]), CLEAN).clean


@pytest.mark.parametrize(("target", "breaks"), [("frontdoor", 0), ("nats-server", 1)])
def test_broken_stream_counts_when_its_front_door_lived(target: str, breaks: int) -> None:
    broken = Broken(at=10.1, op="a", attempt=1, why="reset", begun=True)
    fault = Fault(at=10.0, what="SIGKILL", target=target)
    verdict = check(life(also=[broken, fault]), CLEAN)
    assert (verdict.broken, verdict.stream_breaks) == (breaks, breaks)


def test_answer_is_wrong_when_it_says_something_else() -> None:
    other = Ended(at=12.0, op="a", attempt=0, state="done", text="zero one")
    assert check(life(end=other), CLEAN).wrong == 1
    assert judged(life(), text="another's").wrong == 1


def test_answer_is_wrong_when_the_ledger_says_another_end() -> None:
    assert judged(life(), state="expired", code="deadline_exceeded").wrong == 1


def test_failure_is_unexpected_when_its_code_is_not_allowed() -> None:
    end = Ended(at=12.0, op="a", attempt=0, state="failed", code="engine_error")
    failed = Evidence(ledger={"r": Entry(state="failed", code="engine_error")})
    assert not check(life((), end=end), failed).clean
    assert check(life((), end=end), failed, may_fail=frozenset({"engine_error"})).clean
    assert check(life((), end=end, doomed=True), failed) == Verdict(accepted=1, failed=1)


def test_failure_is_untyped_when_it_has_no_code() -> None:
    assert not judged(life((), doomed=True), state="failed").clean


def test_doomed_request_is_unexpected_when_it_is_done() -> None:
    assert not check(life(doomed=True), CLEAN).clean


def test_orphans_are_counted_when_something_is_left_behind() -> None:
    left = Evidence(ledger={"r": ENTRY}, left=("omni.p.timer.r", "/dev/shm/omnibus-1"))
    assert check(life(), left).left_behind == 2


def test_failover_is_the_wait_from_the_last_kill_before_the_start() -> None:
    kills = [
        Fault(at=9.0, what="SIGKILL", target="replica", held=(("r", 0), ("r", 1))),
        Fault(at=10.9, what="SIGKILL", target="replica", held=(("r", 1), ("unknown", 1))),
        Fault(at=11.5, what="SIGKILL", target="replica", held=(("r", 0),)),
    ]
    assert check(life(also=kills), CLEAN).failovers == pytest.approx((0.1, 1.0))


def test_bound_is_missed_when_a_failover_takes_longer() -> None:
    verdict = Verdict(failovers=(0.01, 0.02, 0.3))
    assert missed_bounds(Bounds(p50=0.05, p99=0.25), verdict, 0.0) == [
        "bound: failover p99 0.300 s, may be 0.25 s",
    ]
    assert missed_bounds(Bounds(longest=3.0, pause=10.0), verdict, 9.0) == []
    assert missed_bounds(Bounds(pause=10.0), verdict, 11.0)


def test_bound_is_missed_when_nobody_struck_had_anything_in_hand() -> None:
    assert missed_bounds(Bounds(p50=0.05), Verdict(), 0.0)
