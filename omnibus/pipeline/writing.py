"""Writing a specification, such as one that inheritance and overrides have merged, as one pipeline file."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from omnibus.pipeline.spec import PipelineSpec


def pipeline_yaml(spec: PipelineSpec) -> str:
    """Write the whole specification without defaults; loading it gives the same specification."""
    values = _set_fields(spec)
    for name in ("stages", "edges"):
        if name in values:
            values[name] = [_set_fields(part) for part in getattr(spec, name)]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text


def _set_fields(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the fields whose values are not their defaults."""
    values = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if value != default:
            values[field.name] = msgspec.to_builtins(value)
    return values
