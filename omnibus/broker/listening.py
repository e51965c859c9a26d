"""The address at which a server of ours listens: who could reach it, whether it is free, and whether a server answers there."""

from __future__ import annotations

import asyncio
import secrets
import socket
from ipaddress import ip_address
from pathlib import Path

from omnibus.errors import ConfigError

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 a name for what the operator may ask for

_NOT_OUTGOING = range(20_000, 30_000)
"""Ports below those that by default Kubernetes (from 30000) and systems (Linux from 32768) give to others."""
_TRIES = 20


def check_exposure(host: str, *, security: Path | None, insecure: bool) -> None:
    """Raises ConfigError for a server that others could reach, and whose password everybody on the way could read."""
    if security is not None or insecure or is_loopback(host):
        return
    raise ConfigError(
        f"--nats-host {host} lets other machines in without TLS. Make keys and certificates, `omnibus nats credentials all "
        f"--pipeline PIPELINE --host {host} --dir DIR`, and serve with --nats-security DIR; or say --insecure on purpose: "
        "then a password is asked for, but everybody on the network can read it",
        param="nats_host",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port of an address of this machine that nobody listens on at this moment; ConfigError for another's address.

    Where there is one, it is none of those that systems give to outgoing connections by default: until it is listened on, any
    of these might take it.
    """
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ConfigError(f"nats-server cannot listen on {host!r}: {error.strerror}", param="nats_host") from error
        fallback = int(probe.getsockname()[1])
    candidates = secrets.SystemRandom().sample(_NOT_OUTGOING, _TRIES)
    return next((port for port in candidates if is_free(host, port)), fallback)


def is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port just left counts as taken
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


async def greets(host: str, port: int) -> bool:
    """Whether a server greets with its INFO line; it does so only once its streams are recovered."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return (await reader.readline()).startswith(b"INFO")
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
