"""A nats-server of our own: started with its owner, ended with it, even when the owner is killed with -9.

Data, log and address live in the state directory, which one server at a time holds through a file lock. The lock is
inherited by the server, so that it is free only when the server is gone too.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from omnibus.broker import server_config
from omnibus.broker.discovery import (
    ServerAddress,
    publish_address,
    running_server,
    take_lock,
    withdraw_address,
)
from omnibus.broker.nats_access import CA_FILE, CREDENTIALS_FILE, without_password, write_private
from omnibus.broker.roles import NatsRole, Permissions
from omnibus.broker.server_binary import check_version, find_binary, profile_path
from omnibus.broker.server_config import User
from omnibus.errors import ConfigError, ServerBinaryError
from omnibus.lineage import set_death_signal
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.settings import Settings
from omnibus.wire import subjects

_LOOPBACK, _EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 a name for what the operator may ask for
OWN_USER, SYSTEM_USER = "omnibus", "observer"
_HEARS_DISCONNECTS = Permissions((), (subjects.disconnects("OMNI"), f"_INBOX_{NatsRole.DISCONNECTS}.>"))
_START_DEADLINE = 20.0
_STOP_DEADLINE = 10.0
_LOCK_DEADLINE = 2.0  # a server whose owner was just killed needs a moment to end

log = get_logger(__name__)


@dataclass(eq=False)
class EmbeddedServer:
    """A nats-server over one state directory; an async context manager.

    It listens on `host`, on `port` when that is free and else on any, and asks for the password that it keeps in the state
    directory, in files that this user alone can read. `security` is a folder that `omnibus nats credentials` has made: its
    users are let in too, and everything is encrypted. Without it only loopback is listened on, unless `insecure`.

    `start` and `kill` may be repeated: port and data stay. Create it on the thread that lives as long as the server should:
    on Linux the server ends with that thread.
    """

    state_dir: Path
    _: KW_ONLY
    binary: Path | None = None
    profile: str = "balanced"
    port: int = 4222
    host: str = _LOOPBACK
    security: Path | None = None
    insecure: bool = False
    _process: asyncio.subprocess.Process | None = field(default=None, init=False)
    _lock: int | None = field(default=None, init=False)
    _password: str = field(default="", init=False, repr=False)
    _system_password: str = field(default="", init=False, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The server that the settings describe."""
        return cls(
            settings.state_dir, binary=settings.nats_server, profile=settings.nats_profile, port=settings.nats_port,
            host=settings.nats_host, security=settings.nats_security, insecure=settings.nats_insecure,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """With the user and the password of this machine's own processes."""
        return self._url(OWN_USER, self._password)

    @property
    def system_url(self) -> str:
        """With the user that may hear disconnect events."""
        return self._url(SYSTEM_USER, self._system_password)

    def _url(self, user: str, password: str) -> str:
        scheme = "nats" if self.security is None else "tls"
        return f"{scheme}://{user}:{password}@{self._reached_at}:{self.port}"

    @property
    def _reached_at(self) -> str:
        """Where this machine reaches it."""
        return _LOOPBACK if self.host == _EVERYWHERE else self.host

    @property
    def pid(self) -> int | None:
        """The server's process, None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def log_path(self) -> Path:
        return self.state_dir / "nats-server.log"

    async def __aenter__(self) -> Self:
        """Start; raises ServerBinaryError, and ConfigError when another server holds the state directory.

        ConfigError also for an address beyond loopback without encryption.
        """
        check_exposure(self.host, security=self.security, insecure=self.insecure)
        self.binary = find_binary(self.binary)
        await check_version(self.binary)
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = await self._acquire()
        try:
            self._password = _kept_password(self.state_dir / CREDENTIALS_FILE, OWN_USER)
            self._system_password = _kept_password(self.state_dir / "nats-system.credentials", SYSTEM_USER)
            self.port = self.port if _is_free(self.host, self.port) else free_port(self.host)
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it serves; raises ServerBinaryError with the end of its log when it does not."""
        assert self._lock is not None, "enter the context first"
        with self.log_path.open("ab") as complaints:  # what the server says before it opens its log itself
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C in the terminal is for the owner, who stops the server last
                preexec_fn=_die_with(os.getpid()),
            )
        await self._await_ready(self._process)
        ca = str(self.security / CA_FILE) if self.security is not None else None
        address = ServerAddress(url=self.url, system_url=self.system_url, pid=self._process.pid, ca=ca)
        publish_address(self.state_dir, address)
        log.info(LogEvent.BROKER_SERVER_STARTED, url=without_password(self.url), log=str(self.log_path))

    async def stop(self) -> None:
        """End the server and release the state directory; idempotent."""
        await self._end(signal.SIGTERM)
        withdraw_address(self.state_dir)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def kill(self) -> None:
        """Kill the server with -9, as a crash would; `start` brings it back on the same port and data."""
        await self._end(signal.SIGKILL)

    async def supervise(self) -> None:
        """Start the server again whenever it dies, until cancelled; raises ServerBinaryError when it cannot be."""
        while True:
            process = self._process
            assert process is not None, "start first"
            code = await process.wait()
            log.error(LogEvent.BROKER_SERVER_EXITED, code=code, log=str(self.log_path))
            await self.start()

    async def _acquire(self) -> int:
        until = time.monotonic() + _LOCK_DEADLINE
        while True:
            lock = take_lock(self.state_dir)
            if lock is not None:
                return lock
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.02)  # a file lock cannot be awaited
        holder = running_server(self.state_dir)
        where = f" at {without_password(holder.url)} (process {holder.pid})" if holder is not None else ""
        raise ConfigError(
            f"{self.state_dir} is in use by another nats-server{where}: use that one (it is found by itself, or through "
            "OMNIBUS_NATS_URL), or choose another OMNIBUS_STATE_DIR"
        )

    def _command(self) -> tuple[str, ...]:
        return (
            *(str(self.binary), "-c", str(self._write_config())),
            *("-a", self.host, "-p", str(self.port)),
            *("-l", str(self.log_path)),
        )

    def _environment(self) -> dict[str, str]:
        """Without our own settings, which may hold secrets of other processes.

        It gets half the cores, unless GOMAXPROCS says otherwise: those that it talks with need the others, and Go's threads
        that look for work cost more than they do where few cores are.
        """
        cores = max(1, len(os.sched_getaffinity(0)) // 2) if sys.platform == "linux" else None
        own = {name: value for name, value in os.environ.items() if not name.startswith("OMNIBUS_")}
        return own if cores is None else {"GOMAXPROCS": str(cores), **own}

    def _write_config(self) -> Path:
        """The server reads its passwords from a file, not from its environment or its arguments."""
        own = User(name="this machine's own processes", user=OWN_USER, password=self._password)
        system = User(
            name="orchestrators, to hear of lost connections", role=NatsRole.DISCONNECTS, permissions=_HEARS_DISCONNECTS,
            user=SYSTEM_USER, password=self._system_password,
        )  # fmt: skip
        users: tuple[User, ...] = (own, system)
        tls = None
        if self.security is not None:
            from omnibus.broker.credentials_folder import CredentialsFolder  # noqa: PLC0415 6 MiB of cryptography

            folder = CredentialsFolder(self.security)
            users, tls = (*users, *folder.users()), folder.tls()
        text = server_config.embedded(
            profile_path(self.profile), store=self.state_dir.resolve() / "nats", users=users, tls=tls
        )
        path = self.state_dir / "nats-server.conf"
        write_private(path, text)
        return path

    async def _await_ready(self, process: asyncio.subprocess.Process) -> None:
        until = time.monotonic() + _START_DEADLINE
        while time.monotonic() < until:
            if process.returncode is not None:
                break
            if await _greets(self._reached_at, self.port):
                return
            await asyncio.sleep(0.01)  # the server has no other way to say that it is ready
        await self._end(signal.SIGKILL)
        raise ServerBinaryError(f"nats-server did not start; the end of {self.log_path}:\n{self._log_end()}")

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(how)
        try:
            async with asyncio.timeout(_STOP_DEADLINE):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _log_end(self) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-5:])
        except OSError:
            return "(no log)"


def check_exposure(host: str, *, security: Path | None, insecure: bool) -> None:
    """Raises ConfigError for a server that others could reach, and whose password everybody on the way could read."""
    if security is not None or insecure or _is_loopback(host):
        return
    raise ConfigError(
        f"--nats-host {host} lets other machines in without TLS. Make keys and certificates, `omnibus nats credentials all "
        f"--pipeline PIPELINE --host {host} --dir DIR`, and serve with --nats-security DIR; or say --insecure on purpose: "
        "then a password is asked for, but everybody on the network can read it",
        param="nats_host",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kept_password(path: Path, user: str) -> str:
    """The password of a user: kept, so that clients come back after a restart."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    text = path.read_text().strip()
    if not text.startswith(f"{user}:"):  # new, or its writer was killed before it wrote
        text = f"{user}:{secrets.token_urlsafe(24)}"
        write_private(path, f"{text}\n")
    return text.partition(":")[2]


def free_port(host: str = _LOOPBACK) -> int:
    """A TCP port of an address of this machine that nobody listens on at this moment; ConfigError for another's address."""
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ConfigError(f"nats-server cannot listen on {host!r}: {error.strerror}", param="nats_host") from error
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port just left counts as taken
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


async def _greets(host: str, port: int) -> bool:
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


def _die_with(owner: int) -> Callable[[], None]:
    """Make a hook that has a child get SIGTERM when the thread that started it ends."""

    def arm() -> None:
        set_death_signal(signal.SIGTERM)
        if os.getppid() != owner:  # it died before this was armed
            os._exit(1)

    return arm
