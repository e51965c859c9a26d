"""Prompt expansions of the shipped pipelines: each makes the companions of a request, for `prompt_expand`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from omnibus.workers.engines.protocol import StageInput

NEGATIVE = "negative"
"""The role of the negative prompt."""


def negative_prompt(stage_input: StageInput) -> Mapping[str, StageInput]:
    """A companion for the negative prompt of a request that has one for a stage that runs; InvalidRequest where it has two."""
    text = stage_input.request.negative_prompt(stage_input.stages)
    return {} if text is None else {NEGATIVE: asking(stage_input, text)}


def negative_prompt_or_blank(stage_input: StageInput) -> Mapping[str, StageInput]:
    """The same, for a model whose guidance is away from a blank where a request has none."""
    return {NEGATIVE: asking(stage_input, stage_input.request.negative_prompt(stage_input.stages) or " ")}


def of_sources(stage_input: StageInput) -> Mapping[str, StageInput]:
    """A companion for each of the input stages', which has that one's outputs in place of theirs."""
    given = stage_input.companions
    roles = {role for members in given.values() for role in members}
    return {
        role: replace(
            stage_input,
            sources={name: given.get(name, {}).get(role, own) for name, own in stage_input.sources.items()},
            companions={},
        )
        for role in roles
    }


def asking(stage_input: StageInput, prompt: str) -> StageInput:
    """The same request with another prompt; files, and the arguments for their processor, are the first one's alone."""
    request = msgspec.structs.replace(stage_input.request, prompt=prompt, messages=None, mm_processor_kwargs={})
    return replace(stage_input, request=request)
