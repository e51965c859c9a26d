"""A specification as a pipeline file: what inheritance and overrides have made of several."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from omnibus.pipeline.spec import PipelineSpec


def pipeline_yaml(spec: PipelineSpec) -> str:
    """One file that says all of it, without defaults; loading it gives the same specification."""
    values = _notified(spec)
    for name in ("stages", "edges"):
        if name in values:
            values[name] = [_notified(part) for part in getattr(spec, name)]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text


def _notified(struct: msgspec.Struct) -> dict[str, Any]:
    """Its fields without those that have their default."""
    told = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if value != default:
            told[field.name] = msgspec.to_builtins(value)
    return told
