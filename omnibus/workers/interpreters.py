"""The interpreters of stages: this process's own, or that of an environment with other packages."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

from omnibus.errors import ConfigError
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.envelope import VERSION

_PARENT = "OMNIBUS_PARENT_WIRE"
"""Set for the processes of a stage: the version of messages of the process that starts it, and its package's."""

_MOST_LIBRARIES, _LONGEST_VERSION = 8, 40


def interpreter_of(stage: StageSpec) -> str:
    """The path as it is named: a link to another interpreter is what makes a virtual environment."""
    return sys.executable if stage.python is None else str(Path(stage.python).expanduser())


def version_environment() -> dict[str, str]:
    """The variables by which a child sees whether it speaks as this process does."""
    return {_PARENT: f"{VERSION} {version('omnibus')}"}


def check_version() -> None:
    """Raise ConfigError, naming both versions, where the process that started this one speaks otherwise."""
    wire, _, package = os.environ.get(_PARENT, "").partition(" ")
    if wire not in ("", str(VERSION)):
        raise ConfigError(
            f"omnibus {version('omnibus')} of {sys.executable} speaks version {VERSION} of the messages, and the process that "
            f"starts it version {wire}, of omnibus {package}: install the same omnibus in both environments",
            param="python",
        )


def installed_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of omnibus, Python and the distributions that are installed, in this order; eight of these at most."""
    found = {"omnibus": version("omnibus"), "python": platform.python_version()}
    for name in islice(libraries, _MOST_LIBRARIES):
        try:
            found[name] = version(name)[:_LONGEST_VERSION]
        except PackageNotFoundError:
            continue
    return found
