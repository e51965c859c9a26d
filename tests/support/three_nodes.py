"""A cluster of three nats-servers on one machine, run with the configurations that are shipped, each on ports of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from omnibus.broker.connection import Connection
from omnibus.broker.listening import free_port
from omnibus.broker.server_binary import find_binary
from omnibus.child_process import ChildProcess, start_child
from tests.support.waiting import eventually

HOST = "127.0.0.1"
SHIPPED = Path(__file__).parents[2] / "nats"
NODES = (1, 2, 3)
_READY, _STOP = 30.0, 20.0


class ThreeNodes:
    """In an `async with`: all three serve. Nodes are 1, 2 and 3; port and data of each stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clients = {node: free_port() for node in NODES}
        self._routes = {node: free_port() for node in NODES}
        self._password = f"s{secrets.token_hex(8)}"
        self._processes: dict[int, ChildProcess] = {}

    @property
    def url(self) -> str:
        return ",".join(map(self.url_of, NODES))

    def url_of(self, node: int) -> str:
        return f"nats://omnibus:{self._password}@{HOST}:{self._clients[node]}"

    @property
    def system_url(self) -> str:
        return ",".join(f"nats://observer:{self._password}@{HOST}:{port}" for port in self._clients.values())

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start the nodes that do not run."""
        for node in NODES:
            if node not in self._processes:
                await self._launch(node)
        for node in NODES:
            await self._listening(node)

    async def start_node(self, node: int) -> None:
        """Start one; returns when it takes clients, which is before it has caught up with the others."""
        await self._launch(node)
        await self._listening(node)

    async def end_node(self, node: int, how: signal.Signals) -> None:
        """End one with a signal; returns when it is gone."""
        process = self._processes.pop(node)
        process.send_signal(how)
        async with asyncio.timeout(_STOP):
            await process.wait()

    def pid(self, node: int) -> int:
        """Process id of a node that runs."""
        return self._processes[node].pid

    async def kill(self) -> None:
        """Kill all that run with -9."""
        for node in tuple(self._processes):
            await self.end_node(node, signal.SIGKILL)

    async def stop(self) -> None:
        """The same: nobody needs their data."""
        await self.kill()

    async def leader_of(self, connection: Connection, stream: str) -> int:
        """The node that leads a stream."""
        info = await connection.api(f"STREAM.INFO.{stream}")
        return int(str(info["cluster"]["leader"]).rpartition("-")[2])

    async def whole(self, connection: Connection, stream: str) -> bool:
        """Whether every copy of a stream is there and up to date."""
        cluster = (await connection.api(f"STREAM.INFO.{stream}")).get("cluster", {})
        copies = cluster.get("replicas") or ()
        return len(copies) == len(NODES) - 1 and all(
            copy["current"] and not copy.get("offline", False) for copy in copies
        )

    async def _launch(self, node: int) -> None:
        with (self.folder / f"node-{node}.log").open("ab") as log:
            self._processes[node] = await start_child(
                str(find_binary(None)), "-c", str(self._configuration(node)),
                cwd=self.folder, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def _listening(self, node: int) -> None:
        async def answers() -> bool:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    reader, writer = await asyncio.open_connection(HOST, self._clients[node])
                    greeting = await reader.readline()
                    writer.close()
                    return greeting.startswith(b"INFO")
            return False

        await eventually(answers, _READY, what=f"node {node} listens")

    def _configuration(self, node: int) -> Path:
        """The shipped file, with this machine's ports and folders in place of three hosts'."""
        text = (SHIPPED / "cluster" / f"node{node}.conf").read_text()
        places = {
            "0.0.0.0:4222": f"{HOST}:{self._clients[node]}",
            "0.0.0.0:6222": f"{HOST}:{self._routes[node]}",
            "./nats-data-": f"{self.folder}/data-",
            'include "../': 'include "',
            **{f"nats-{other}:6222": f"{HOST}:{self._routes[other]}" for other in NODES},
        }
        for shipped, here in places.items():
            text = text.replace(shipped, here)
        for included in ("limits.conf", "accounts.conf"):
            if not (self.folder / included).exists():  # a node that starts may be reading it
                (self.folder / included).write_text((SHIPPED / included).read_text())
        file = self.folder / f"node{node}.conf"
        file.write_text(text)
        return file

    def _environment(self) -> Mapping[str, str]:
        return {
            **os.environ, "OMNIBUS_NATS_PASSWORD": self._password, "OMNIBUS_NATS_SYSTEM_PASSWORD": self._password
        }  # fmt: skip
