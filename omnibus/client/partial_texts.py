"""What the texts of a request had come to when it is cancelled: asked of the replicas that say them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from omnibus.broker.connection import Connection
from omnibus.client.assembly import Assembly
from omnibus.client.request_events import ABORT
from omnibus.errors import OmnibusError
from omnibus.payloads.store import PayloadStore
from omnibus.requests.record import Record
from omnibus.wire import codec, subjects
from omnibus.wire.control import SENT_TEXT_PAGE, AskSentText
from omnibus.wire.envelope import FinalOutput, TokenUsage
from omnibus.wire.out import Tokens
from omnibus.wire.payload import RECORD_INLINE_LIMIT, TEXT

ANSWER_TIMEOUT = 0.25
"""Seconds in which a replica must have answered; a text that nobody says just now is not waited for any longer."""


async def partial_texts(connection: Connection, store: PayloadStore, record: Record) -> dict[int, FinalOutput]:
    """The delivered texts that are being made, as outputs for the record; without those that have not begun."""
    stages = [stage.stage_id for stage in record.ticket.route.finals if stage.final == "text"]
    running = [stage_id for stage_id in stages if stage_id not in record.outputs]
    said = await asyncio.gather(*(_said(connection, record, stage_id) for stage_id in running))
    texts, left = {}, RECORD_INLINE_LIMIT
    for stage_id, (text, tokens) in zip(running, said, strict=True):
        if not text:
            continue
        payload = await store.put(text.encode(), TEXT, rid=record.rid, limit=left, lasting=True)
        left -= len(payload.data or b"")
        texts[stage_id] = FinalOutput(
            stage_id=stage_id, modality="text", items=(payload,), finish_reason=ABORT, usage=TokenUsage(0, tokens)
        )
    return texts


async def _said(connection: Connection, record: Record, stage_id: int) -> tuple[str, int]:
    """Text and number of its tokens; of two attempts the later one's."""
    assembly, text = Assembly(), ""
    question = codec.encode(AskSentText(rid=record.rid, stage_id=stage_id))
    subject, tokens = subjects.ctl_all(record.ticket.pipeline), 0
    try:
        async with (
            asyncio.timeout(ANSWER_TIMEOUT),
            aclosing(connection.request_many(subject, question, timeout=ANSWER_TIMEOUT)) as answers,
        ):
            async for answer in answers:
                message: Tokens = codec.decode(answer.data, Tokens)
                text += "".join(piece.text for piece in assembly.tokens(message))
                tokens = message.token_offset + len(message.token_ids)
                if len(message.text) < SENT_TEXT_PAGE:
                    break
    except (TimeoutError, OmnibusError):  # what there is, then; a cancellation does not wait
        pass
    return text, tokens
