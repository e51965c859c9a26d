"""Cancelling a request wherever it is: queued, running, or still among the raw requests that nobody has admitted."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing

import msgspec

from omnibus.client.assembly import Assembly
from omnibus.client.channel import Channel
from omnibus.client.request_events import ABORT, FieldPiece, TextPiece
from omnibus.errors import OmnibusError, RequestCancelled
from omnibus.ledger.raw_requests import find_raw, remove_raw
from omnibus.ledger.records import StoredRecord
from omnibus.requests.admission import unadmitted_record
from omnibus.requests.advance import cancel, purge_of
from omnibus.requests.effects import Notify
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec, subjects
from omnibus.wire.control import SENT_TEXT_PAGE, AskSentText
from omnibus.wire.envelope import FinalOutput, TokenUsage
from omnibus.wire.failure import Failure
from omnibus.wire.names import is_name
from omnibus.wire.out import EndNotice, Tokens
from omnibus.wire.payload import JSON, RECORD_INLINE_LIMIT, TEXT, Payload

ANSWER_TIMEOUT = 0.25
"""Seconds in which a replica must have answered; a text that nobody sends just now is not waited for any longer."""


async def cancel_request(channel: Channel, rid: str, *, tenant: str | None = None) -> Record:
    """The record of a request after this has ended it, or as it had ended before.

    Texts that were being made are among its outputs as far as they had come. Raises UnknownRequest, also for one of
    another `tenant` where one is given.
    """

    async def decide(entry: StoredRecord | None) -> None:
        if entry is None and await _cancel_raw(channel, rid, tenant):
            return
        found = channel.known(entry, rid, tenant)
        texts = {} if found.record.state.terminal else await _partial_texts(channel, found.record)
        await channel.performer.perform(cancel(found.record, texts), found.revision)

    await channel.performer.ledger.transact(rid, decide)
    return (await channel.entry(rid, tenant)).record


async def _cancel_raw(channel: Channel, rid: str, tenant: str | None) -> bool:
    """End a request that waits in the stream of raw ones, of this tenant where one is given; whether there was any.

    Raises RevisionConflict when somebody has admitted it meanwhile. An orchestrator that has it in hand finds its record,
    and admits it no more.
    """
    performer, clock = channel.performer, channel.connection.clock
    if (raw := await find_raw(channel.connection, channel.pipeline, rid)) is None:
        return False
    front = raw.front if raw.front is not None and is_name(raw.front) else None
    record = unadmitted_record(
        channel.pipeline, rid, RequestState.CANCELLED, Failure.of(RequestCancelled()),
        data=raw.data, nonce=secrets.token_hex(8), now=clock.now(), front=front,
    )  # fmt: skip
    if tenant not in (None, record.tenant):
        return False
    await performer.ledger.create(record)
    if front is not None:
        await performer.perform((Notify(front, EndNotice(rid=rid, state=record.state)),))
    await remove_raw(channel.connection, channel.pipeline, rid)
    # Of an orchestrator that died before it came to the record.
    await performer.perform((purge_of(record, stored=True),))
    return True


async def _partial_texts(channel: Channel, record: Record) -> dict[int, FinalOutput]:
    """The delivered texts that are being made, as outputs for the record; without those that have not begun."""
    stages = [stage.stage_id for stage in record.ticket.route.finals if stage.final == "text"]
    running = [stage_id for stage_id in stages if stage_id not in record.outputs]
    sent = await asyncio.gather(*(_sent_text(channel, record, stage_id) for stage_id in running))
    texts, left = {}, RECORD_INLINE_LIMIT
    for stage_id, (text, fields, tokens) in zip(running, sent, strict=True):
        if not (text or fields):
            continue
        stored = list[Payload]()
        for data, kind in ((text.encode(), TEXT), (msgspec.json.encode(fields), JSON))[: 2 if fields else 1]:
            stored.append(await channel.store.put(data, kind, rid=record.rid, limit=left, lasting=True))
            left -= len(stored[-1].data or b"")
        texts[stage_id] = FinalOutput(
            stage_id=stage_id, modality="text", items=(stored[0],), finish_reason=ABORT, usage=TokenUsage(0, tokens),
            fields=stored[1] if fields else None,
        )  # fmt: skip
    return texts


async def _sent_text(channel: Channel, record: Record, stage_id: int) -> tuple[str, dict[str, str], int]:
    """Text, fields and number of tokens, asked of the replica that sends them; of two attempts the later one's."""
    assembly, text, fields = Assembly(), "", dict[str, str]()
    question = codec.encode(AskSentText(rid=record.rid, stage_id=stage_id))
    asking = channel.connection.request_many(subjects.ask_all(channel.pipeline), question, timeout=ANSWER_TIMEOUT)
    tokens = 0
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT), aclosing(asking) as answers:
            async for answer in answers:
                message: Tokens = codec.decode(answer.data, Tokens)
                for piece in assembly.tokens(message):
                    match piece:
                        case TextPiece():
                            text += piece.text
                        case FieldPiece():
                            fields[piece.name] = fields.get(piece.name, "") + piece.text
                tokens = message.token_offset + len(message.token_ids)
                if message.size < SENT_TEXT_PAGE:
                    break
    except (TimeoutError, OmnibusError):  # what there is, then; a cancellation does not wait
        pass
    return text, fields, tokens
