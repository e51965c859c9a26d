"""The stage of bench.hops: hands on what it gets."""

from __future__ import annotations

from omnibus.workers.engines.protocol import StageInput


async def echo(stage_input: StageInput) -> str:
    """The text of the stage before, or of the request."""
    for outputs in stage_input.sources.values():
        return str(outputs["text"])
    return stage_input.request.text()
