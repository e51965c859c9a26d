"""Two hosts on one machine: network namespaces of their own, joined by one cable, gone when the test is, however it ends.

A namespace lives as long as its holder, a `cat` that ends with the test's end of its pipe. Where the test is not root, both are
made inside a user namespace.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.served import command_line

_DEADLINE = 10.0
_LISTENING, _ESTABLISHED = "0A", "01"


@dataclass(frozen=True, slots=True)
class Host:
    """One end of the cable."""

    address: str
    holder: int
    """The process that holds the namespace."""

    def omnibus(self, *words: str, env: Mapping[str, str], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command of the product on this host, to its end."""
        return subprocess.run(
            [*self._entered(), *command_line(*words)],
            env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    @contextmanager
    def running(self, *words: str, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A command of the product on this host; at the end stopped as an operator stops it."""
        with self.running_program(*command_line(*words), env=env, log=log) as process:
            yield process

    @contextmanager
    def running_program(self, *command: str, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Any program on this host; at the end stopped as an operator stops it."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*self._entered(), *command],
                env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()

    def ip(self, *words: str) -> None:
        """Run `ip` on this host."""
        subprocess.run([*self._entered(), "ip", *words], check=True, timeout=_DEADLINE, capture_output=True)

    def listening(self) -> list[str]:
        """Addresses at which anything on this host accepts connections, as hexadecimal address:port."""
        return [local for local, _peer, state in self._sockets() if state == _LISTENING]

    def peers(self) -> set[tuple[str, int]]:
        """Address and port of everything that this host is connected to."""
        return {_readable(peer) for _local, peer, state in self._sockets() if state == _ESTABLISHED}

    def _sockets(self) -> list[tuple[str, str, str]]:
        lines = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/{self.holder}/net/{name}").read_text().splitlines()[1:]
        ]
        return [(fields[1], fields[2], fields[3]) for fields in lines]

    def _entered(self) -> list[str]:
        return [*_enter(self.holder), "--"]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else."""
    with ExitStack() as stack:
        near = stack.enter_context(_holder([*_unshare(), "cat"]))
        far = stack.enter_context(_holder([*_enter_user(near), "unshare", "-n", "cat"]))
        hosts = Host("10.213.7.1", near), Host("10.213.7.2", far)
        hosts[0].ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(far))
        for host in hosts:
            host.ip("address", "add", f"{host.address}/30", "dev", "cable")
            host.ip("link", "set", "lo", "up")
            host.ip("link", "set", "cable", "up")
        yield hosts


@contextmanager
def _holder(command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        _await_name(process, "cat")
        yield process.pid
    finally:
        process.kill()
        process.communicate(timeout=_DEADLINE)


def _await_name(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait until `unshare` has made the namespace and become the command that it runs."""
    until = time.monotonic() + _DEADLINE
    while Path(f"/proc/{process.pid}/comm").read_text().strip() != name:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < until, f"{process.args} did not make a namespace"
        time.sleep(0.005)


def _is_root() -> bool:
    return os.geteuid() == 0


def _unshare() -> list[str]:
    return ["unshare", "-n"] if _is_root() else ["unshare", "-Urn"]


def _enter_user(holder: int) -> list[str]:
    return [] if _is_root() else ["nsenter", "-t", str(holder), "-U", "--preserve-credentials", "--"]


def _enter(holder: int) -> list[str]:
    user = [] if _is_root() else ["-U", "--preserve-credentials"]
    return ["nsenter", "-t", str(holder), *user, "-n"]


def _readable(peer: str) -> tuple[str, int]:
    """`0107D50A:105E` of /proc/net/tcp, little-endian, as ("10.213.7.1", 4190)."""
    address, port = peer.split(":")
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(address))), int(port, 16)
