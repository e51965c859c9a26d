"""Where the broker is: what the operator said, else the embedded server that runs over the state directory, else port 4222."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from omnibus.settings import DEFAULT_NATS_URL, Settings

_ADDRESS_FILE = "server.json"
_LOCK_FILE = "server.lock"


class ServerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The address that a running embedded server leaves in the state directory."""

    url: str
    system_url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses to connect to."""

    url: str
    system_url: str | None
    """URL with the user that may subscribe to disconnect events; None when none is known."""


def discover(settings: Settings) -> Addresses:
    """The broker to use. It may not run: connecting says so."""
    if settings.nats_url is not None:
        return Addresses(settings.nats_url, settings.nats_system_url)
    running = running_server(settings.state_dir)
    if running is not None:
        return Addresses(running.url, settings.nats_system_url or running.system_url)
    return Addresses(DEFAULT_NATS_URL, settings.nats_system_url)


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
    scratch = state_dir / f"{_ADDRESS_FILE}.{os.getpid()}"
    scratch.touch(mode=0o600)
    scratch.write_bytes(msgspec.json.encode(address))
    scratch.replace(state_dir / _ADDRESS_FILE)


def withdraw_address(state_dir: Path) -> None:
    (state_dir / _ADDRESS_FILE).unlink(missing_ok=True)


def take_lock(state_dir: Path) -> int | None:
    """A file descriptor that holds the state directory as long as anybody has it open; None when another holds it."""
    lock = os.open(state_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
