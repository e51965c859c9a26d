"""The import of an object that a pipeline names as `module:name`."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

from omnibus.errors import ConfigError
from omnibus.pipeline.files import suggestion


def load_object(reference: str, field: str) -> Any:
    """The object at `module:name`, dots allowed in the name; `field` is what errors name.

    A function or class must be of the package that is named: what a module has imported from elsewhere, such as `subprocess`,
    is not its own to give. Raises ConfigError for that, and when the reference is malformed, the module cannot be imported or
    has no such name.
    """
    module_name, separator, path = reference.partition(":")
    if not separator or not module_name or not path:
        raise ConfigError(f"{field} must be module:name, got {reference!r}", param=field)
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{field} {reference!r}: {error}", param=field) from error
    for part in path.split("."):
        if not hasattr(found, part):
            hint = suggestion(part, (name for name in dir(found) if not name.startswith("_")))
            raise ConfigError(f"{field} {reference!r}: {module_name} has no {path!r}{hint}", param=field)
        found = getattr(found, part)
        _check_origin(found, module_name, field, reference)
    return found


def _check_origin(found: Any, module_name: str, field: str, reference: str) -> None:
    if isinstance(found, ModuleType):
        origin: str | None = found.__name__
    else:
        defined = inspect.isclass(found) or inspect.isroutine(found)
        origin = getattr(found, "__module__", None) if defined else None
    if origin is not None and origin.partition(".")[0] != module_name.partition(".")[0]:
        raise ConfigError(f"{field} {reference!r}: it is defined in {origin}; name it there", param=field)
