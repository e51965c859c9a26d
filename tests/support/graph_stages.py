"""Input processors for tests of graphs."""

from __future__ import annotations

from omnibus.workers.engines.protocol import EngineInput, StageInput


def join_texts(stage_input: StageInput) -> EngineInput:
    """The texts of all sources, by stage name, as one prompt."""
    texts = {name: outputs["text"] for name, outputs in stage_input.sources.items()}
    return EngineInput(text=" ".join(f"{name}={texts[name]}" for name in sorted(texts)))


def break_on_poison(stage_input: StageInput) -> EngineInput:
    """Raises what nobody foresaw for one prompt, and only for that."""
    if "poison" in stage_input.request.text():
        raise ZeroDivisionError("a bug of a processor")
    return EngineInput(text=stage_input.request.text())
