"""Sampling parameters of a request, for each stage of vLLM-Omni that runs in one of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import msgspec
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind

from omnibus.errors import EngineRejected
from omnibus.pipeline.files import suggestion

_OF_STAGE = re.compile(r"stage_(\d+)")
_EVERYWHERE = "seed"


def stage_parameters(defaults: Sequence[Any], sounds: Sequence[bool], given: Mapping[str, Any]) -> list[Any]:
    """A set for each stage: its default, overridden. `sounds`: whether a stage's final output is sound.

    `stage_1: {…}` is for that one; any other goes to the first stage that has it, a seed to all. Raises EngineRejected.
    """
    overrides: list[dict[str, Any]] = [{} for _ in defaults]
    for name, value in given.items():
        if numbered := _OF_STAGE.fullmatch(name):
            _override_stage(overrides, int(numbered[1]), name, value)
            continue
        takers = [number for number, default in enumerate(defaults) if hasattr(default, name)]
        if not takers:
            known = (field for default in defaults for field in get_type_hints(type(default)))
            raise EngineRejected(f"unknown parameter {name!r}{suggestion(name, known)}", param=name)
        for number in takers if name == _EVERYWHERE else takers[:1]:
            overrides[number].setdefault(name, value)
    return [_made(*one) for one in zip(defaults, sounds, overrides, strict=True)]


def _override_stage(overrides: list[dict[str, Any]], number: int, name: str, value: Any) -> None:
    if number >= len(overrides):
        raise EngineRejected(f"there is no {name}: this stage runs {len(overrides)} of vLLM-Omni's", param=name)
    if not isinstance(value, Mapping):
        raise EngineRejected(f"{name} is a mapping of parameters", param=name)
    overrides[number].update(value)


def _made(default: Any, is_sound: bool, given: Mapping[str, Any]) -> Any:
    hints = get_type_hints(type(default))
    values = {name: _checked(hints, name, value) for name, value in given.items()}
    if not isinstance(default, SamplingParams):
        made = default.clone()
        for name, value in values.items():
            setattr(made, name, value)
        return made
    # Text streams; sound is wanted whole, and then comes as one piece.
    kind = RequestOutputKind.FINAL_ONLY if is_sound else RequestOutputKind.DELTA
    try:
        return msgspec.structs.replace(default, **{**values, "output_kind": kind})
    except (VLLMClientError, ValueError, TypeError) as error:
        raise EngineRejected(str(error), param=next(iter(given), None)) from error


def _checked(hints: Mapping[str, Any], name: str, value: Any) -> Any:
    if name not in hints:
        raise EngineRejected(f"unknown parameter {name!r}{suggestion(name, hints)}", param=name)
    try:
        return msgspec.convert(value, hints[name])
    except msgspec.ValidationError as error:
        raise EngineRejected(f"{name}: {error}", param=name) from error
    except TypeError as error:  # a tensor, a generator, …
        raise EngineRejected(f"{name} cannot be set by a request", param=name) from error
