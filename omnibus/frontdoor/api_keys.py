"""API keys: their roles, the file that holds their hashes, and the table that the front door looks a caller's key up in.

A key is kept as its SHA-256 alone. Keys that `create_key` makes are random, so that no slow hash is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from omnibus.errors import ConfigError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger

KEY_PREFIX: Final = "omnibus-"
RELOAD_INTERVAL: Final = 1.0
"""Seconds after which a changed file is noticed, at the next request."""
_HASHED: Final = "sha256:"
_log = get_logger(__name__)


class Role(StrEnum):
    """The rights of a key."""

    USER = "user"
    """It asks for answers, and sees and cancels the requests of this key."""
    ADMIN = "admin"
    """It also controls replicas, sees and cancels the requests of all, and reads the metrics where they are closed."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key, as it is kept."""

    name: str
    role: Role = Role.USER
    sha256: str
    """Hexadecimal digits."""
    created: float = 0.0
    """Seconds since the epoch."""
    keep: float | None = None
    """Seconds for which anything that it stores is kept, at most; None: no bound of its own."""

    @property
    def tenant(self) -> str:
        """The tenant that the key stands for; it must not tell the key."""
        return f"key-{self.sha256[:16]}"


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_setting(text: str) -> ApiKey:
    """A key of `OMNIBUS_API_KEYS`: `[user:|admin:]KEY`, or `sha256:` and the hash in the place of the key."""
    role, name = Role.USER, text
    for one in Role:
        if text.startswith(f"{one}:"):
            role, name = one, text.removeprefix(f"{one}:")
    digest = name.removeprefix(_HASHED) if name.startswith(_HASHED) else hash_key(name)
    return ApiKey(name="OMNIBUS_API_KEYS", role=role, sha256=digest)


def hashed_setting(text: str) -> str:
    """The same key for the environment of a child process, which must not hold it."""
    key = read_setting(text)
    return f"{key.role}:{_HASHED}{key.sha256}"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file of keys, readable by its owner alone. It may be missing."""

    path: Path

    def read(self) -> tuple[ApiKey, ...]:
        """All keys; raises ConfigError for a file that cannot be read, FileNotFoundError for none."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=tuple[ApiKey, ...])
        except FileNotFoundError:
            raise
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{self.path} cannot be read as a file of API keys: {error}", param="api_keys_file"
            ) from error

    def add(self, name: str, role: Role, keep: float | None = None) -> str:
        """Make a key of this name; returns it, which nobody can do again. Raises ConfigError when the name is taken."""
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        with self._changing() as keys:
            if any(one.name == name for one in keys):
                raise ConfigError(f"there is a key {name!r}; revoke it first, or choose another name", param="name")
            keys.append(ApiKey(name=name, role=role, sha256=hash_key(key), created=time.time(), keep=keep))
        return key

    def revoke(self, name: str) -> None:
        """Remove a key; raises ConfigError when there is none of this name."""
        with self._changing() as keys:
            kept = [one for one in keys if one.name != name]
            if len(kept) == len(keys):
                raise ConfigError(f"there is no key {name!r} in {self.path}", param="name")
            keys[:] = kept

    @contextmanager
    def _changing(self) -> Iterator[list[ApiKey]]:
        """The keys, to be changed by one process at a time; written as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                keys = list(self.read())
            except FileNotFoundError:
                keys = []
            yield keys
            scratch = self.path.with_suffix(".new")
            scratch.touch(mode=0o600)
            scratch.write_bytes(msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")
            scratch.replace(self.path)


class KeyTable:
    """The keys of the settings and of the file, which is read again when it has changed.

    A key is asked for as soon as there is one, or the file; after that never again not, whatever becomes of the file.
    """

    def __init__(self, settings: Iterable[str] = (), file: Path | None = None) -> None:
        """Raises ConfigError for a file that cannot be read."""
        self._fixed = {key.sha256: key for key in map(read_setting, settings)}
        self._keys = dict(self._fixed)
        self._file = KeyFile(file) if file is not None else None
        self._version: tuple[int, ...] | None = None
        self._looked = 0.0
        self._is_closed = bool(self._fixed)
        self._reload()

    def asks(self) -> bool:
        """Whether callers need a key."""
        if time.monotonic() - self._looked > RELOAD_INTERVAL:
            try:
                self._reload()
            except ConfigError as error:  # half written, or not ours any more: the keys that were known stay
                _log.warning(LogEvent.API_KEYS_UNREADABLE, error=error.message)
        return self._is_closed

    def find(self, token: str) -> ApiKey | None:
        """The key that a caller has shown; None for a wrong one."""
        return self._keys.get(hash_key(token))

    def _reload(self) -> None:
        self._looked = time.monotonic()
        if self._file is None:
            return
        try:
            about = self._file.path.stat()
            version = (about.st_mtime_ns, about.st_size, about.st_ino)
            if version == self._version:
                return
            found = self._file.read()
        except FileNotFoundError:
            self._keys, self._version = dict(self._fixed), None
            return
        self._version, self._is_closed = version, True
        self._keys = self._fixed | {key.sha256: key for key in found}
