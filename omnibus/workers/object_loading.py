"""What a pipeline names as `module:function`."""

from __future__ import annotations

import importlib
from typing import Any

from omnibus.errors import ConfigError


def load_object(reference: str, what: str) -> Any:
    """The object at `module:name`, dots allowed in the name; `what` is the field that errors name.

    Raises ConfigError when the reference is malformed, the module cannot be imported or has no such name.
    """
    module_name, separator, path = reference.partition(":")
    if not separator or not module_name or not path:
        raise ConfigError(f"{what} must be module:name, got {reference!r}", param=what)
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{what} {reference!r}: {error}", param=what) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{what} {reference!r}: {module_name} has no {path!r}", param=what)
        found = getattr(found, part)
    return found
