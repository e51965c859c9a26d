"""The text of a running job on its way out: joined where that delays nothing, bounded, and sent again from any offset."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from omnibus.broker.connection import Connection
from omnibus.client.assembly import Assembly
from omnibus.client.request_events import FieldPiece, TextPiece
from omnibus.errors import BrokerUnavailable
from omnibus.wire import codec
from omnibus.wire.control import SENT_TEXT_PAGE
from omnibus.wire.out import Fence, FieldDelta, Out, Step, Tokens
from omnibus.workers import text_stream
from omnibus.workers.engines.protocol import Progress, TextDelta
from omnibus.workers.text_stream import MOST_KEPT, MOST_PENDING, DeltaStream, DeltaStreams
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit
FIRST, SECOND = Fence(1, 5, 1), Fence(1, 5, 2)


class SlowConnection:
    """Takes messages while it is not full, and lets who can wait do so until then."""

    def __init__(self) -> None:
        self.sent: list[Out] = []
        self.room = asyncio.Event()
        self.room.set()
        self.fails = False

    @property
    def is_full(self) -> bool:
        return not self.room.is_set()

    def send(self, _subject: str, data: bytes) -> None:
        if self.fails:
            raise BrokerUnavailable("gone")
        self.sent.append(codec.decode(data, Out))

    async def publish(self, subject: str, data: bytes) -> None:
        await self.room.wait()
        self.send(subject, data)

    @property
    def tokens(self) -> list[Tokens]:
        return [sent for sent in self.sent if isinstance(sent, Tokens)]

    @property
    def texts(self) -> list[str]:
        return [sent.text for sent in self.tokens]


@asynccontextmanager
async def streaming(conn: SlowConnection, rid: str = "r") -> AsyncIterator[SimpleNamespace]:
    streams = DeltaStreams(cast("Connection", conn))
    with streams.running(rid, 0, FIRST, "out") as stream:
        yield SimpleNamespace(streams=streams, stream=stream, add=lambda item: streams.add(stream, item))


def delta(text: str, *token_ids: int) -> TextDelta:
    return TextDelta(text=text, token_ids=token_ids)


async def test_deltas_are_joined_while_the_connection_is_full() -> None:
    conn = SlowConnection()
    conn.room.clear()
    async with streaming(conn) as made:
        for number in range(10):
            made.add(delta(f"{number}", number))
            made.add(Progress(step=number, total=10))
        ending = asyncio.create_task(made.streams.flush(made.stream))
        await asyncio.sleep(0)
        assert conn.sent == []
        conn.room.set()
        await ending
    steps = [sent for sent in conn.sent if isinstance(sent, Step)]
    assert "".join(conn.texts) == "0123456789"
    assert [token for sent in conn.tokens for token in sent.token_ids] == list(range(10))
    assert len(conn.tokens) == 1
    assert [step.step for step in steps] == [9]


def test_a_preview_is_sent_when_a_step_without_one_follows_before_it_has_left() -> None:
    stream = DeltaStream("r", 0, FIRST)
    for step, preview in ((1, b"first"), (2, b"second"), (3, None)):
        stream.add(Progress(step=step, total=3, preview=preview))
    sent = stream.next()
    assert isinstance(sent, Step)
    assert (sent.step, sent.preview, stream.next()) == (3, b"second", None)
    stream.add(Progress(step=4, total=4))
    following = stream.next()
    assert isinstance(following, Step)
    assert following.preview is None, "it is sent once"


async def test_first_piece_leaves_at_once_and_later_ones_wait_for_the_end_of_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_stream, "WINDOW", 0.3)
    conn = SlowConnection()
    async with streaming(conn) as made:
        made.add(delta("a", 1))
        assert conn.texts == ["a"]
        for text in "bcd":
            made.add(delta(text, 2))
            await asyncio.sleep(0)
        assert conn.texts == ["a"]
        await eventually(lambda: len(conn.texts) > 1)
        assert conn.texts == ["a", "bcd"]
        made.add(delta("e", 3))
        await made.streams.flush(made.stream)  # the end of a text waits for no window
    assert conn.texts == ["a", "bcd", "e"]
    assert [sent.offset for sent in conn.tokens] == [0, 1, 4]
    assert [sent.token_offset for sent in conn.tokens] == [0, 1, 4]


async def test_what_waits_of_all_streams_leaves_together_when_the_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_stream, "WINDOW", 0.1)
    conn = SlowConnection()
    streams = DeltaStreams(cast("Connection", conn))
    with streams.running("r", 0, FIRST, "out") as one, streams.running("s", 0, FIRST, "out") as other:
        for text in "ab":
            for stream in (one, other):
                streams.add(stream, delta(text))
        assert conn.texts == ["a", "a"]
        await eventually(lambda: len(conn.texts) > 2)
        assert conn.texts == ["a", "a", "b", "b"]


async def test_nothing_is_sent_any_more_when_the_attempt_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_stream, "WINDOW", 0.05)
    conn = SlowConnection()
    async with streaming(conn) as made:
        made.add(delta("a"))
        made.add(delta("b"))
    sent = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, sent.set)
    await sent.wait()
    assert conn.texts == ["a"]


async def test_deltas_are_bounded_and_leave_a_gap_when_the_connection_stays_full() -> None:
    conn = SlowConnection()
    conn.room.clear()
    piece, count = "x" * 1000, 2 * MOST_PENDING // 1000
    async with streaming(conn) as made:
        for _ in range(count):
            made.add(delta(piece))
        conn.room.set()
        await made.streams.flush(made.stream)
        made.add(delta("end"))
        await made.streams.flush(made.stream)
        assert "".join(page.text for page in made.stream.since(0)) == piece * count + "end"
    assert conn.tokens[-1].offset == count * 1000
    assert sum(map(len, conn.texts)) < 1.1 * MOST_PENDING


async def test_text_that_the_broker_did_not_take_leaves_a_gap_and_is_kept() -> None:
    conn = SlowConnection()
    async with streaming(conn) as made:
        conn.fails = True
        made.add(delta("ab", 1))
        await made.streams.flush(made.stream)
        conn.fails = False
        made.add(delta("c", 2))
        await made.streams.flush(made.stream)
        (page,) = made.stream.since(0)
    assert [(sent.offset, sent.text, sent.token_offset) for sent in conn.tokens] == [(2, "c", 1)]
    assert (page.text, page.token_ids) == ("abc", (1, 2))


async def test_tokens_that_an_engine_gives_together_leave_together() -> None:
    conn = SlowConnection()
    async with streaming(conn) as made:
        made.add(delta("one two three", 1, 2, 3))
    assert [(sent.text, sent.token_ids) for sent in conn.tokens] == [("one two three", (1, 2, 3))]


async def test_token_ids_wait_for_their_text() -> None:
    conn = SlowConnection()
    async with streaming(conn) as made:
        made.add(delta("", 1))
        await made.streams.flush(made.stream)
        assert conn.sent == []
        made.add(delta("é", 2))
        await made.streams.flush(made.stream)
    assert [sent.token_ids for sent in conn.tokens] == [(1, 2)]


def stream_of(*pieces: TextDelta, sent: int = 0) -> DeltaStream:
    """A stream of these pieces, of which the first `sent` left one by one."""
    stream = DeltaStream("r", 0, FIRST)
    for number, piece in enumerate(pieces):
        stream.add(piece)
        if number < sent:
            stream.next()
    return stream


def received_again(stream: DeltaStream, assembly: Assembly) -> str:
    messages = list(stream.since(assembly.known(0)))
    return "".join(piece.text for message in messages for piece in assembly.tokens(message))


@pytest.mark.parametrize("sent", range(5))
def test_all_text_is_sent_again_from_the_start(sent: int) -> None:
    assembly = Assembly()
    stream = stream_of(delta("a", 1), delta("", 2), delta("é", 3), delta("b", 4), sent=sent)
    assert received_again(stream, assembly) == "aéb"
    assert assembly.received(0, SECOND) == (1, 2, 3, 4)


@pytest.mark.parametrize("sent", range(4))
def test_tokens_are_without_a_gap_when_the_text_stood_between_the_tokens_of_a_character(sent: int) -> None:
    assembly = Assembly()
    assert received_again(stream_of(delta("a", 1), sent=sent), assembly) == "a"
    assert received_again(stream_of(delta("a", 1), delta("", 2), delta("é", 3), sent=sent), assembly) == "é"
    assert assembly.received(0, SECOND) == (1, 2, 3)


@pytest.mark.parametrize("sent", range(3))
def test_rest_is_sent_when_a_piece_was_received_in_part(sent: int) -> None:
    (message,) = stream_of(delta("abc", 1), delta("de", 2), sent=sent).since(1)
    assert (message.offset, message.text, message.token_offset, message.token_ids) == (0, "abcde", 0, (1, 2))


def test_received_pieces_are_not_sent_again() -> None:
    (message,) = stream_of(delta("abc", 1), delta("de", 2), delta("f", 3), sent=2).since(4)
    assert (message.offset, message.text, message.token_offset, message.token_ids) == (3, "def", 1, (2, 3))


def test_answer_is_empty_when_no_text_was_sent() -> None:
    (message,) = stream_of().since(0)
    assert (message.offset, message.text) == (0, "")


@pytest.mark.parametrize("sent", [0, 7, 200])
def test_long_text_is_sent_in_pages_of_which_the_last_is_short(sent: int) -> None:
    word = "x" * 1000
    stream = stream_of(*(delta(word, number) for number in range(200)), sent=sent)
    pages = list(stream.since(0))
    assert [len(page.text) >= SENT_TEXT_PAGE for page in pages] == [True] * (len(pages) - 1) + [False]
    assert "".join(page.text for page in pages) == word * 200
    assert [token for page in pages for token in page.token_ids] == list(range(200))


@pytest.mark.parametrize("sent", [0, 3])
def test_rest_of_a_text_is_not_kept_when_it_is_too_long(sent: int) -> None:
    stream = stream_of(delta("x" * (MOST_KEPT - 1), 1), delta("yy", 2), delta("z", 3), sent=sent)
    kept = "".join(page.text for page in stream.since(0))
    assert kept == "x" * len(kept)
    assert MOST_KEPT - MOST_PENDING < len(kept) < MOST_KEPT


ANSWERS = {f"{number}.text": "語🙂\n" * 20_000 for number in range(1, 16)}


@pytest.mark.parametrize(
    "deltas",
    [
        [TextDelta(text="語" * 60_000, token_ids=tuple(range(60_000)), fields=ANSWERS)],
        [TextDelta(text="🙂", token_ids=(300_000, 300_001, 300_002))] * 100_000,
        [
            TextDelta(text="", token_ids=(300_000,), fields={name: "語\n"})
            for name in ("reasoning", "logprobs") * 40_000
        ],
    ],
    ids=["answers at once", "short tokens", "short fields"],
)
def test_no_message_is_too_large_for_the_broker_and_nothing_is_missing_when_a_text_is_no_ascii(
    deltas: list[TextDelta],
) -> None:
    stream, sent = DeltaStream("r", 0, FIRST), list[Tokens | Step]()
    for made in deltas:
        stream.add(made)
        if stream.has_news and len(deltas) == 1:
            sent += iter(stream.next, None)
    again = list(stream.since(0))
    assert max(len(codec.encode(message)) for message in (*sent, *again)) < 1 << 20
    assembly, texts = Assembly(), defaultdict[str, str](str)
    for event in (event for page in again for event in assembly.tokens(page)):
        assert isinstance(event, TextPiece | FieldPiece)
        texts[getattr(event, "name", "")] += event.text
        assert not hasattr(event, "name") or event.text.endswith("\n")
    whole = defaultdict[str, str](str)
    for made in deltas:
        whole[""] += made.text
        for name, text in made.fields.items():
            whole[name] += text
    assert all(whole[name].startswith(text) for name, text in texts.items())
    assert sum(map(len, texts.values())) > min(MOST_KEPT - MOST_PENDING, sum(map(len, whole.values())) - 1)


def test_text_is_forgotten_when_its_job_ends_and_a_later_attempt_has_its_place() -> None:
    streams = DeltaStreams(cast("Connection", None))
    with streams.running("r", 0, FIRST), streams.running("r", 0, SECOND) as later:
        assert streams.of("r", 0) is later
    assert streams.of("r", 0) is None


def test_pieces_of_fields_are_joined_and_say_where_they_belong() -> None:
    stream = DeltaStream("r", 0, FIRST)
    for made in ({"reasoning": "a"}, {"reasoning": "b"}):
        stream.add(TextDelta(text="", token_ids=(1,), fields=made))
    stream.add(TextDelta(text="text", token_ids=(2,), fields={"logprobs": "1\n"}))
    stream.add(TextDelta(text=" more", token_ids=(3,), fields={"logprobs": "2\n"}))
    message = stream.next()
    assert isinstance(message, Tokens)
    assert message.fields == (
        FieldDelta("reasoning", 0, 0, "ab"), FieldDelta("logprobs", 0, 0, "1\n"), FieldDelta("logprobs", 2, 4, "2\n"),
    )  # fmt: skip
    assert (message.text, message.token_ids, message.fields_offset) == ("text more", (1, 1, 2, 3), 0)
    stream.add(TextDelta(text="", fields={"reasoning": "c"}))
    after = stream.next()
    assert isinstance(after, Tokens)
    assert (after.offset, after.fields_offset, after.fields) == (9, 6, (FieldDelta("reasoning", 2, 9, "c"),))


def test_pages_of_a_text_that_is_sent_again_count_its_fields() -> None:
    stream, piece = DeltaStream("r", 0, FIRST), "x" * 1000
    for _ in range(200):
        stream.add(TextDelta(text="", fields={"reasoning": piece}))
        stream.next()
    pages = list(stream.since(0))
    assert [page.size >= SENT_TEXT_PAGE for page in pages] == [True] * (len(pages) - 1) + [False]
    assembly = Assembly()
    events = [event for page in pages for event in assembly.tokens(page)]
    assert "".join(event.text for event in events if isinstance(event, FieldPiece)) == piece * 200
