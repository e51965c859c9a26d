"""The cursor of a caller that goes on from any event of a request."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable, Sequence

import msgspec
import pytest

from omnibus.client.request_events import (
    ClientEvent,
    Ended,
    FieldPiece,
    Output,
    OutputArrived,
    Result,
    SegmentFinished,
    StepProgress,
    TextPiece,
)
from omnibus.client.stream_cursor import PIECE_CHARS, StreamCursor
from omnibus.errors import InvalidRequest
from omnibus.requests.state import RequestState

RID = "abc"


def ended(run: int = 1) -> Ended:
    return Ended(Result(RID, "p", RequestState.DONE, 0.0, 1.0, run, (), (), None))


def output(stage_id: int, text: str) -> OutputArrived:
    return OutputArrived(Output(stage_id, "text", "text/plain", (text.encode(),)))


EVENTS: Sequence[ClientEvent] = (
    FieldPiece(0, "reasoning", "so "), TextPiece(0, "häl"), StepProgress(1, 1, 4), TextPiece(0, "lo 🎈"),
    FieldPiece(0, "reasoning", "it is"), SegmentFinished(0, 0), TextPiece(0, " you"), StepProgress(1, 3, 4),
    SegmentFinished(0, 1), output(0, "hällo 🎈 you"), output(1, ""), output(1, "second of the stage"), ended(),
)  # fmt: skip


def taken(cursor: StreamCursor, events: Iterable[ClientEvent]) -> list[tuple[ClientEvent, str]]:
    return [(new, str(cursor)) for event in events for new in cursor.behind(event)]


def text_of(events: Iterable[ClientEvent], name: str = "") -> str:
    found = (event for event in events if isinstance(event, TextPiece | FieldPiece))
    return "".join(event.text for event in found if getattr(event, "name", "") == name)


def as_another_sends_it(generator: random.Random) -> list[ClientEvent]:
    """The same request as a follower has it that came later: texts in other pieces, only the last step."""
    pieces: list[ClientEvent] = []
    for event in EVENTS:
        match event:
            case TextPiece(stage_id, text):
                at = generator.randint(0, len(text))
                pieces += [TextPiece(stage_id, part) for part in (text[:at], text[at:]) if part]
            case FieldPiece(stage_id, name, text):
                at = generator.randint(0, len(text))
                pieces += [FieldPiece(stage_id, name, part) for part in (text[:at], text[at:]) if part]
            case StepProgress(step=1):
                continue
            case _:
                pieces.append(event)
    return pieces


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("at", range(len(EVENTS) + 1))
def test_nothing_is_missing_or_twice_behind_any_event(at: int, seed: int) -> None:
    before = taken(StreamCursor(RID), EVENTS)[:at]
    cursor = StreamCursor(RID, before[-1][1] if before else None)
    events = [event for event, _ in before]
    events += [event for event, _ in taken(cursor, as_another_sends_it(random.Random(seed)))]
    assert (text_of(events), text_of(events, "reasoning")) == ("hällo 🎈 you", "so it is")
    for kind in (SegmentFinished, OutputArrived, Ended):
        assert [one for one in events if isinstance(one, kind)] == [one for one in EVENTS if isinstance(one, kind)]
    steps = [event.step for event in events if isinstance(event, StepProgress)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 3
    assert cursor.has_end(1)
    assert not cursor.has_end(2)


def test_text_is_not_spliced_onto_another_when_a_later_attempt_writes_otherwise() -> None:
    _, place = taken(StreamCursor(RID), [TextPiece(0, "one two"), FieldPiece(0, "reasoning", "hm")])[-1]
    again = [TextPiece(0, "one t"), TextPiece(0, "hree four"), FieldPiece(0, "reasoning", "hm, well"), output(0, "x")]
    cursor = StreamCursor(RID, place)
    assert [event for event, _ in taken(cursor, again)] == [FieldPiece(0, "reasoning", ", well"), output(0, "x")]
    # Nor by who goes on from there.
    more = taken(StreamCursor(RID, str(cursor)), [TextPiece(0, "one three four five"), output(0, "x")])
    assert more == []


def test_a_long_text_comes_in_pieces_each_with_its_own_cursor() -> None:
    long = "ab" * PIECE_CHARS
    pieces = taken(StreamCursor(RID), [TextPiece(0, long)])
    assert len(pieces) == len({place for _, place in pieces}) == 2
    rest = taken(StreamCursor(RID, pieces[0][1]), [TextPiece(0, long + "c")])
    assert text_of(event for event, _ in [pieces[0], *rest]) == long + "c"


def test_the_end_of_another_run_is_an_event_of_its_own() -> None:
    (_, place), = taken(StreamCursor(RID), [ended(1)])  # fmt: skip
    cursor = StreamCursor(RID, place)
    assert (cursor.has_end(1), cursor.has_end(2)) == (True, False)
    assert [event for event, _ in taken(cursor, [ended(1), ended(2)])] == [ended(2)]


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).decode().rstrip("=")


@pytest.mark.parametrize(
    "given",
    ["", "7", "é", "no cursor", "AAAA", "A" * 20_000, encoded([1]), encoded("text"), encoded([1, -1]), str(StreamCursor("xyz")),
     encoded([(2**31), 0, {0: [0, 0, 0, {"": [-5, 0]}]}])],
)  # fmt: skip
def test_a_wrong_cursor_is_refused_by_the_name_of_its_parameter(given: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        StreamCursor(RID, given, param="Last-Event-ID")
    assert refused.value.param == "Last-Event-ID"


def test_a_cursor_is_short_and_fits_a_header() -> None:
    places = [place for _, place in taken(StreamCursor(RID), EVENTS)]
    assert max(map(len, places)) < 90
    assert all(place.isascii() and place.replace("-", "").replace("_", "").isalnum() for place in places)
