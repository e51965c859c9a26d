"""Storage of the operator's: S3 and what speaks it, other clouds' object stores, or a folder, by obstore.

Credentials are those that the clouds' own tools find in the environment.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, TypeVar

from omnibus.errors import BrokerUnavailable, ConfigError, PayloadLost

T = TypeVar("T")

_PATIENCE = timedelta(seconds=20)
"""Time for one operation, retries of the storage's client included."""
_MOST_RETRIES = 4


async def reading(work: Awaitable[T], url: str) -> T:
    """The result of `work`, which reads at `url`; raises PayloadLost for what is gone, BrokerUnavailable without an answer."""
    from obstore.exceptions import InvalidPathError, NotFoundError  # noqa: PLC0415 an extra

    try:
        return await work
    except PayloadLost:
        raise
    except (NotFoundError, FileNotFoundError, InvalidPathError) as error:
        raise PayloadLost(f"{url} is gone") from error
    except Exception as error:
        raise BrokerUnavailable(f"{url} cannot be read: {first_line(error)}") from error


def open_storage(url: str, setting: str) -> Any:
    """The client of the place that a setting names; raises ConfigError for one that cannot be used."""
    try:
        from obstore.store import from_url  # noqa: PLC0415 an extra
    except ImportError as error:
        raise ConfigError(f"{setting} needs a package: pip install 'omnibus[outputs]'") from error
    retries = {"max_retries": _MOST_RETRIES, "retry_timeout": _PATIENCE}
    local = {"mkdir": True} if url.startswith("file:") else {}
    remote = {} if local or url.startswith("memory:") else {"retry_config": retries}
    try:
        return from_url(url, **remote, **local)
    except Exception as error:
        raise ConfigError(
            f"{setting}={url}: name a place such as s3://bucket/prefix or file:///folder: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of what a client of a storage says."""
    return str(error).strip().partition("\n")[0]
