"""The name of a flow: whose chunks they are, and where they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from omnibus.wire import stores, subjects
from omnibus.wire.envelope import Ticket


@dataclass(frozen=True, slots=True)
class FlowName:
    """One stage in one run of one request. An id that is used again, or a later run, has other flows."""

    pipeline: str
    rid: str
    nonce: str
    run: int
    stage_id: int | str
    stage: str
    """The stage's name, for errors."""

    @classmethod
    def of(cls, ticket: Ticket, stage_id: int, stage: str) -> FlowName:
        """The flow of a stage in the run that a ticket belongs to."""
        return cls(ticket.pipeline, ticket.rid, ticket.nonce, ticket.run, stage_id, stage)

    @classmethod
    def of_input(cls, ticket: Ticket) -> FlowName:
        """The open input of a request, which all its runs read."""
        return cls(ticket.pipeline, ticket.rid, ticket.nonce, 0, subjects.INPUT, subjects.INPUT)

    @property
    def stream(self) -> str:
        return stores.chunks_stream(self.pipeline)

    @property
    def subject(self) -> str:
        return subjects.chunks(self.pipeline, self.rid, self.nonce, self.run, self.stage_id)

    def position(self, reader: int | str) -> str:
        """The subject of how far a stage has read it; `*` for any."""
        return subjects.read_position(self.subject, reader)

    def __str__(self) -> str:
        return "the open input" if self.stage_id == subjects.INPUT else f"the flow of stage {self.stage!r}"
