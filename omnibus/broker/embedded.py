"""A nats-server of our own: started with its owner, ended with it, even when the owner is killed with -9.

Data, log and address live in the state directory, which one server at a time holds through a file lock. The lock is
inherited by the server, so that it is free only when the server is gone too.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Self

from omnibus.broker import server_config
from omnibus.broker.discovery import ServerAddress, hold, publish_address, withdraw_address
from omnibus.broker.listening import EVERYWHERE, LOOPBACK, check_exposure, free_port, greets, is_free
from omnibus.broker.nats_access import CA_FILE, CREDENTIALS_FILE, without_password, write_private
from omnibus.broker.roles import NatsRole, Permissions
from omnibus.broker.server_binary import check_version, find_binary, profile_path
from omnibus.broker.server_config import User
from omnibus.child_process import ChildProcess, start_child
from omnibus.errors import ServerBinaryError
from omnibus.lineage import tied
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.settings import Settings
from omnibus.wire import subjects

OWN_USER, SYSTEM_USER = "omnibus", "observer"
_HEARS_DISCONNECTS = Permissions((), (subjects.disconnects("OMNI"), f"_INBOX_{NatsRole.DISCONNECTS}.>"))
_START_DEADLINE = 20.0
_STOP_DEADLINE = 10.0

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
    host: str = LOOPBACK
    security: Path | None = None
    insecure: bool = False
    _process: ChildProcess | None = field(default=None, init=False)
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
        return LOOPBACK if self.host == EVERYWHERE else self.host

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
        self._lock = await hold(self.state_dir)
        try:
            self._password = _kept_password(self.state_dir / CREDENTIALS_FILE, OWN_USER)
            self._system_password = _kept_password(self.state_dir / "nats-system.credentials", SYSTEM_USER)
            self.port = self.port if is_free(self.host, self.port) else free_port(self.host)
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
            self._process = await start_child(
                *tied(self._command(), signal.SIGTERM),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C in the terminal is for the owner, who stops the server last
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

    async def _await_ready(self, process: ChildProcess) -> None:
        until = time.monotonic() + _START_DEADLINE
        while time.monotonic() < until:
            if process.returncode is not None:
                break
            if await greets(self._reached_at, self.port):
                return
            await asyncio.sleep(0.01)  # the server has no other way to say that it is ready
        await self._end(signal.SIGKILL)
        raise ServerBinaryError(f"nats-server did not start; the end of {self.log_path}:\n{self._log_end()}")

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(how)
        try:
            async with asyncio.timeout(_STOP_DEADLINE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _log_end(self) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-5:])
        except OSError:
            return "(no log)"


def _kept_password(path: Path, user: str) -> str:
    """The password of a user: kept, so that clients come back after a restart."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    text = path.read_text().strip()
    if not text.startswith(f"{user}:"):  # new, or its writer was killed before it wrote
        text = f"{user}:{secrets.token_urlsafe(24)}"
        write_private(path, f"{text}\n")
    return text.partition(":")[2]
