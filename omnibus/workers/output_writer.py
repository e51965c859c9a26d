"""From what an engine made to what leaves the stage: payloads for the next stages, files or text for the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from omnibus.errors import EngineError
from omnibus.flows.writer import CHUNK_INLINE
from omnibus.payloads.packing import HEAVY, Packed, packed
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PayloadRule, PipelineSpec, StageSpec
from omnibus.wire.chunk import CALLER_INLINE, media_first
from omnibus.wire.envelope import FinalOutput, Task
from omnibus.wire.payload import ENVELOPE_LIMIT, INLINE_LIMIT, JSON, RECORD_INLINE_LIMIT, ROLE_MARK, Payloads
from omnibus.workers.chunked_sound import ChunkedSound
from omnibus.workers.chunked_video import ChunkedVideo
from omnibus.workers.engines.protocol import Finished, Outputs
from omnibus.workers.output_files import File, encoded

_ENVELOPE_REST = 32 * 1024  # of an envelope: route, trace, timings and names
ChunkedMedia = ChunkedSound | ChunkedVideo
_REACH = tuple(PayloadRule)
_KINDS = {"embedding": "tensor"}
"""Kinds of output that a modality is made of, where it does not bear the kind's name."""


class OutputWriter:
    """Stores the outputs of one stage; `kinds` are those that its engine declares."""

    def __init__(self, spec: PipelineSpec, stage: StageSpec, kinds: Mapping[str, str], store: PayloadStore) -> None:
        self._spec, self._stage, self._kinds, self._store = spec, stage, kinds, store

    async def forwarded(self, task: Task, finished: Finished) -> Payloads:
        """Every output as a payload for the next stages, companions' too; empty when the route has none after this one.

        Raises EngineError for a value that cannot be sent.
        """
        targets = [target.stage_id for target in task.ticket.route[task.stage_id].whole_targets]
        if not targets:
            return {}
        # Together they must fit into one envelope, whatever each of them would be allowed.
        return await self._stored(task, _by_name(finished), self._rule(task.stage_id, targets), inline_share(task))

    async def chunk(self, task: Task, outputs: Outputs, media: ChunkedMedia | None = None) -> Payloads:
        """One chunk of the stage's flow as payloads: for the stages that read it, and its `media` where a caller gets them.

        Empty where none of it is for anybody. Raises EngineError for a value that cannot be sent.
        """
        readers = task.ticket.route[task.stage_id].streams_to
        found = await asyncio.to_thread(media.of, outputs) if media is not None else None
        _, shown = found or (None, {})
        others = ((other, value) for other, value in outputs.items() if readers and other not in shown)
        payloads = await self._stored(task, others, self._rule(task.stage_id, readers), CHUNK_INLINE)
        left = CALLER_INLINE
        for one, value in shown.items():
            payloads[one] = await self._store.put(await self._packed(one, value), rid=task.ticket.rid, limit=left)
            left -= len(payloads[one].data or b"")
        return media_first(payloads, shown)

    def media(self, modality: str | None) -> ChunkedMedia | None:
        """The sound or video of one attempt at the stage, for a caller to hear or see.

        None for anything else, and for a video with a sound: its file alone has both.
        """
        if modality == "audio":
            return ChunkedSound(self._stage.name, self._names("audio"))
        is_silent = modality == "video" and "audio" not in self._kinds.values()
        return ChunkedVideo(self._stage.name, self._names("video")) if is_silent else None

    async def final(self, task: Task, finished: Finished) -> FinalOutput | None:
        """The delivered output, None when the route delivers none of this stage. Raises EngineError when it is missing."""
        stage = task.ticket.route[task.stage_id]
        if stage.final is None:
            return None
        # One that was aborted has none but its first.
        also, left = list[FinalOutput](), RECORD_INLINE_LIMIT
        for modality in stage.also if finished.outputs else ():
            output, left = await self._final(task, finished, modality, left)
            also.append(output)
        first, _ = await self._final(task, finished, stage.final, left)
        return msgspec.structs.replace(first, also=tuple(also))

    async def _final(self, task: Task, finished: Finished, modality: str, left: int) -> tuple[FinalOutput, int]:
        """The output of one modality, and how many bytes may be inline after it."""
        items = await self._files(modality, finished.outputs) if finished.outputs else ()
        stored = []
        for data, kind in items:
            payload = await self._store.put(
                data, kind, rid=task.ticket.rid, ticket=task.ticket, limit=left, lasting=True
            )
            left -= len(payload.data or b"")
            stored.append(payload)
        fields = None
        if finished.fields and modality == "text":
            data = msgspec.json.encode(finished.fields)
            fields = await self._store.put(
                data, JSON, rid=task.ticket.rid, ticket=task.ticket, limit=left, lasting=True
            )
        output = FinalOutput(
            stage_id=task.stage_id, modality=modality, items=tuple(stored), finish_reason=finished.finish_reason,
            usage=finished.usage, segments=finished.segments if modality == "text" else (), fields=fields,
        )  # fmt: skip
        return output, left

    async def _stored(
        self, task: Task, outputs: Iterable[tuple[str, Any]], rule: PayloadRule, inline: int
    ) -> Payloads:  # fmt: skip
        """Outputs as payloads, `inline` bytes of which may be in the message that refers to them."""
        payloads = {}
        for name, value in outputs:
            data = await self._packed(name, value)
            payload = await self._store.put(data, rid=task.ticket.rid, ticket=task.ticket, rule=rule, limit=inline)
            inline -= len(payload.data or b"")
            payloads[name] = payload
        return payloads

    def _rule(self, stage_id: int, targets: Iterable[int]) -> PayloadRule:
        """The rule of all edges that share the payloads: the one whose reach is the longest."""
        return max(
            (self._spec.edge(stage_id, target).payload for target in targets), key=_REACH.index, default=_REACH[0]
        )

    async def _packed(self, name: str, value: Any) -> Packed:
        try:
            return await packed(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise EngineError(f"stage {self._stage.name!r}: output {name!r}: {error}") from error

    async def _files(self, modality: str, outputs: Outputs) -> list[File]:
        name = self._output_of(modality, outputs)
        value = outputs[name]
        if modality == "text" and isinstance(value, str) and len(value) <= HEAVY:
            return encoded(modality, value)  # a thread would cost more
        beside = {"fps": outputs.get("fps"), "heard": self._heard(outputs)} if modality == "video" else {}
        try:
            return await asyncio.to_thread(encoded, modality, value, outputs.get("sample_rate"), **beside)
        except EngineError as error:
            raise EngineError(f"stage {self._stage.name!r}: output {name!r}: {error.message}") from error

    def _heard(self, outputs: Outputs) -> Any:
        """The sound that was made with a video, and is part of its file."""
        return next((outputs[name] for name in self._names("audio") if name in outputs), None)

    def _output_of(self, modality: str, outputs: Outputs) -> str:
        """The output that a modality is delivered from: of its name, or the first of its kind."""
        found = next((name for name in self._names(modality) if name in outputs), None)
        if found is None and len(outputs) == 1:
            found = next(iter(outputs))
        if found is None:
            raise EngineError(f"stage {self._stage.name!r} made no {modality}, only {', '.join(outputs) or 'nothing'}")
        return found

    def _names(self, modality: str) -> list[str]:
        kind = _KINDS.get(modality, modality)
        return [modality, *(name for name, its in self._kinds.items() if its == kind)]


def _by_name(finished: Finished) -> Iterator[tuple[str, Any]]:
    yield from finished.outputs.items()
    for role, outputs in finished.companions.items():
        yield from ((f"{name}{ROLE_MARK}{role}", value) for name, value in outputs.items())


def inline_share(task: Task) -> int:
    """Bytes of a stage's outputs that may ride inline: so many that every envelope they will be in keeps its limit.

    That is the stage's event, with the request and a final output; and the task of a join, with the request and the outputs
    of all its sources.
    """
    ticket = task.ticket
    free = ENVELOPE_LIMIT - _ENVELOPE_REST - len(ticket.request.data or b"")
    widest = max(len(ticket.route[target.stage_id].sources) for target in ticket.route[task.stage_id].whole_targets)
    return min(INLINE_LIMIT, free - RECORD_INLINE_LIMIT, free // widest)
