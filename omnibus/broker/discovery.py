"""Where the broker is: what the operator said, else the embedded server that runs over the state directory, else port 4222."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from omnibus.broker.nats_access import SYSTEM_ROLE, Access, without_password, write_private
from omnibus.errors import ConfigError
from omnibus.settings import DEFAULT_NATS_URL, Settings

_URL_VARIABLE = "OMNIBUS_NATS_URL"
_VARIABLES = (
    "OMNIBUS_NATS_CREDENTIALS", "OMNIBUS_NATS_TLS_CA", "OMNIBUS_NATS_TLS_CERT", "OMNIBUS_NATS_TLS_KEY",
    "OMNIBUS_NATS_SYSTEM_URL", "OMNIBUS_NATS_SYSTEM_CREDENTIALS",
)  # fmt: skip
_ADDRESS_FILE = "server.json"
_LOCK_FILE = "server.lock"
_LOCK_DEADLINE = 2.0


class ServerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The address that a running embedded server leaves in the state directory."""

    url: str
    """With the user and the password of this machine's own processes."""
    system_url: str
    pid: int
    ca: str | None = None
    """Path of its certificate authority, where it speaks TLS."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses to connect to."""

    url: str
    access: Access
    system_url: str | None
    """URL for the user that may subscribe to disconnect events; None when none is known."""
    system_access: Access
    environment: Mapping[str, str]
    """By these variables a child process finds the same broker. They hold no secret that the operator has not put there."""
    is_embedded: bool = False
    """Whether it is the server that runs over the state directory."""


def discover(settings: Settings) -> Addresses:
    """The broker to use. It may not run: connecting says so."""
    running = running_server(settings.state_dir)
    if running is None or not _is_meant(settings, running):
        return _configured(settings)
    ca = Path(running.ca) if running.ca is not None else None
    if settings.nats_credentials is not None:  # of another user than this machine's own
        named = {"nats_url": without_password(running.url), "nats_tls_ca": settings.nats_tls_ca or ca}
        return _configured(settings.model_copy(update=named))
    own = Access(ca=ca)
    unset = dict.fromkeys((_URL_VARIABLE, *_VARIABLES), "")  # what the operator says of another broker
    environment = {**unset, "OMNIBUS_STATE_DIR": str(settings.state_dir)}
    return Addresses(running.url, own, running.system_url, own, environment, is_embedded=True)


def _is_meant(settings: Settings, running: ServerAddress) -> bool:
    """Also where its URL was given alone: its password is known here."""
    named = settings.nats_url
    return named is None or (settings.nats_credentials is None and named == without_password(running.url))


def _configured(settings: Settings) -> Addresses:
    url, access = settings.nats_url or DEFAULT_NATS_URL, Access.of(settings)
    system = replace(access, credentials=settings.nats_system_credentials)
    system_url = settings.nats_system_url
    if system_url is None and access.has_role(SYSTEM_ROLE):
        system_url, system = url, access
    given = {
        _URL_VARIABLE: url,
        **{name: getattr(settings, name.removeprefix("OMNIBUS_").lower()) for name in _VARIABLES},
    }
    environment = {name: str(value) for name, value in given.items() if value is not None}
    return Addresses(url, access, system_url, system, environment)


def running_server(state_dir: Path) -> ServerAddress | None:
    """The embedded server that runs over `state_dir`, None when none does."""
    try:
        address = msgspec.json.decode((state_dir / _ADDRESS_FILE).read_bytes(), type=ServerAddress)
        with (state_dir / _LOCK_FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return address  # its owner, or the server itself, holds the lock
    except (OSError, msgspec.DecodeError):
        return None
    return None


def publish_address(state_dir: Path, address: ServerAddress) -> None:
    """Leave the address for `discover`; readable by this user only."""
    write_private(state_dir / _ADDRESS_FILE, msgspec.json.encode(address))


def withdraw_address(state_dir: Path) -> None:
    (state_dir / _ADDRESS_FILE).unlink(missing_ok=True)


async def hold(state_dir: Path) -> int:
    """A file descriptor that holds the state directory as long as anybody has it open.

    Raises ConfigError when another process holds it and keeps it for longer than a server needs whose owner was just killed.
    """
    until = time.monotonic() + _LOCK_DEADLINE
    while (lock := _take_lock(state_dir)) is None:
        if time.monotonic() > until:
            holder = running_server(state_dir)
            where = f" at {without_password(holder.url)} (process {holder.pid})" if holder is not None else ""
            raise ConfigError(
                f"{state_dir} is in use by another nats-server{where}: use that one (it is found by itself, or through "
                "OMNIBUS_NATS_URL), or choose another OMNIBUS_STATE_DIR"
            )
        await asyncio.sleep(0.02)  # a file lock cannot be awaited
    return lock


def _take_lock(state_dir: Path) -> int | None:
    lock = os.open(state_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
