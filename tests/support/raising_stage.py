"""A stage that fails with its prompt for a message."""

from __future__ import annotations

from omnibus.workers.engines.protocol import StageInput


def answer(stage_input: StageInput) -> str:
    raise ValueError(stage_input.request.prompt)
