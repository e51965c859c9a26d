"""The product as separate processes, each of which may be killed with -9 and started again.

Every process is one that an operator would start: a nats-server, `omnibus orchestrator`, `omnibus frontdoor`, and
`omnibus worker --stage N` for each stage, on ports and a state directory of their own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.child_process import ChildProcess, start_child
from omnibus.cli.readiness import Readiness
from omnibus.lineage import PARENT_VARIABLE
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.registry.presence.replica_view import ReplicaView
from tests.support.memory import memory_of
from tests.support.processes import children_of, is_running
from tests.support.three_nodes import ThreeNodes
from tests.support.waiting import eventually

HOST = "127.0.0.1"
READY_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
_LAST_LINES = 25


def pipeline_of(folder: Path, text: str) -> PipelineSpec:
    """The pipeline that a YAML text describes."""
    file = folder / "pipeline.yaml"
    file.write_text(text)
    return load_pipeline(str(file))


class Cluster:
    """A served pipeline, in an `async with`: ready when entered, all of it gone at the end. Logs of a failure are printed."""

    def __init__(
        self,
        folder: Path,
        spec: PipelineSpec,
        *,
        replicas: Mapping[int, int] | None = None,
        ready: float = READY_TIMEOUT,
        nats: EmbeddedServer | ThreeNodes | None = None,
        orchestrators: int = 1,
        modules: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`replicas` by stage id, where they are not one; 0: none is started. `env` is added to every process's.

        `ready` is how long everything may take to come up, seconds.

        `nats` is entered and ended here; None: a single server. `modules` are those that workers may load.
        """
        self.spec = spec
        self.folder = folder
        self.nats = nats or EmbeddedServer(folder / "nats", profile="balanced", port=free_port())
        self.orchestrators = ("orchestrator", *(f"orchestrator-{number}" for number in range(2, orchestrators + 1)))
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.connection: Connection
        """A connection of the test's own."""
        self.view: ReplicaView
        self._replicas = {stage.stage_id: 1 for stage in self.spec.stages} | dict(replicas or {})
        self._ready, self._modules = ready, modules
        self.env = dict(env or {})
        self._processes: dict[str, ChildProcess] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stack.push(self._print_logs)
        try:
            await self._open()
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    # What runs

    async def orchestrator(self, name: str = "orchestrator", env: Mapping[str, str] | None = None) -> None:
        """Start an orchestrator."""
        await self.start(name, "orchestrator", "--pipeline", self.spec.name, env=env)

    async def front_door(self, env: Mapping[str, str] | None = None) -> None:
        """Start the front door, always on the same port."""
        await self.start("frontdoor", "frontdoor", "--port", str(self.port), env=env)

    async def worker(
        self, stage_id: int, replicas: int | None = None, name: str = "", env: Mapping[str, str] | None = None
    ) -> str:
        """Start a worker of a stage, by default with as many replicas as at the beginning; returns its name."""
        name = name or f"worker-{stage_id}"
        count = str(replicas or self._replicas[stage_id])
        words = ("--pipeline", self.spec.name, "--stage", str(stage_id), "--replicas", count, "--grace", "10")
        if (python := self.spec.stage(stage_id).python) is not None:  # which is not deployed
            words = (*words, "--stage-overrides", f"{stage_id}.python={python}")
        await self.start(name, "worker", *words, env=env)
        return name

    async def start(self, name: str, *words: str, env: Mapping[str, str] | None = None) -> None:
        """Run a command of the product under a name; `env` is added to its environment."""
        environment = {
            **os.environ,
            "OMNIBUS_NATS_URL": self.nats.url,
            "OMNIBUS_NATS_SYSTEM_URL": self.nats.system_url,
            "OMNIBUS_STATE_DIR": str(self.folder / "state"),
            "OMNIBUS_LOG_FORMAT": "json",
            PARENT_VARIABLE: str(os.getpid()),
            **({"OMNIBUS_ALLOWED_MODULES": self._modules} if self._modules else {}),
            **self.env,
            **(env or {}),
        }
        with self._log(name).open("ab") as log:
            self._processes[name] = await start_child(
                sys.executable, "-m", "omnibus.cli", *words,
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    # What happens to it

    async def kill(self, name: str) -> None:
        """Kill a process with -9; returns when it is gone."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            process.kill()
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()

    async def stop(self, name: str) -> int:
        """End a process with SIGTERM, as an operator does; returns its exit code."""
        process = self._processes.pop(name)
        process.terminate()
        async with asyncio.timeout(STOP_TIMEOUT):
            return await process.wait()

    async def ended(self, name: str) -> int:
        """The exit code of a process that ends by itself."""
        async with asyncio.timeout(STOP_TIMEOUT):
            return await self._processes.pop(name).wait()

    def pid(self, name: str) -> int:
        """Process id of a process that was started under this name."""
        return self._processes[name].pid

    def pids(self) -> dict[str, int]:
        """Process ids of everything that was started here, by name."""
        return {name: process.pid for name, process in self._processes.items()}

    async def kill_replica(self, stage_id: int) -> int:
        """Kill one replica of a stage with -9: its worker starts it again. Returns the dead process's id."""
        worker = self._processes[f"worker-{stage_id}"].pid
        pid = await eventually(
            lambda: next(iter(children_of(worker, "replica_main")), 0), self._ready, what="a replica to kill"
        )
        os.kill(pid, signal.SIGKILL)
        return pid

    async def end_nats(self) -> None:
        """Stop nats-server with SIGTERM, and start it again on the same port and data."""
        nats = self.nats
        assert isinstance(nats, EmbeddedServer)
        assert nats.pid is not None
        os.kill(nats.pid, signal.SIGTERM)
        await eventually(lambda: nats.pid is None, STOP_TIMEOUT, what="nats-server has ended")
        await nats.start()

    async def kill_nats(self, outage: float = 0.0) -> None:
        """Kill nats-server with -9, and start it again `outage` seconds later on the same port and data."""
        await self.nats.kill()
        await asyncio.sleep(outage)
        await self.nats.start()

    async def wait_up(self, replicas: Mapping[int, int] | None = None) -> None:
        """Return once the replicas of each stage are up, an orchestrator listens and the front door answers."""
        readiness = Readiness(self.connection, self.spec, self.view, lambda _part, _rest: None)
        ready = asyncio.create_task(
            readiness.wait(replicas or self._replicas, front_doors=(HOST, self.port, 1)), name="cluster-ready"
        )
        ends = {asyncio.create_task(made.wait(), name=f"end-{name}"): name for name, made in self._processes.items()}
        try:
            async with asyncio.timeout(self._ready):
                await asyncio.wait({ready, *ends}, return_when=asyncio.FIRST_COMPLETED)
            ended = [name for task, name in ends.items() if task.done()]
            assert not ended, f"ended by themselves: {ended}"
            ready.result()
        finally:
            for task in (ready, *ends):
                task.cancel()
            await asyncio.gather(ready, *ends, return_exceptions=True)

    async def _open(self) -> None:
        self._stack.push_async_callback(self.nats.stop)
        await self.nats.__aenter__()
        self._stack.push_async_callback(self.nats.kill)  # nobody needs its data
        self.connection = await self._stack.enter_async_context(connect(self.nats.url, name="cluster", role="test"))
        await deploy_pipeline(self.connection, self.spec, replicas=3 if isinstance(self.nats, ThreeNodes) else 1)
        self.view = ReplicaView(self.connection, self.spec.name, timeout=self.spec.heartbeat_timeout)
        await self._stack.enter_async_context(self.view)
        self._stack.push_async_callback(self._kill_all)
        for stage_id, replicas in self._replicas.items():
            if replicas:
                await self.worker(stage_id, replicas)
        for name in self.orchestrators:
            await self.orchestrator(name)
        await self.front_door()
        await self.wait_up()

    async def _kill_all(self) -> None:
        replicas = {pid for one in self._processes.values() for pid in children_of(one.pid, "replica_main")}
        for name in tuple(self._processes):
            await self.kill(name)
        await eventually(
            lambda: not any(map(is_running, replicas)), STOP_TIMEOUT, what="no replica outlives its supervisor"
        )
        for path in memory_of(replicas):  # as the next worker of the pipeline would, when their requests have ended
            path.unlink(missing_ok=True)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _print_logs(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            print(f"--- {log.name}", *lines, sep="\n")
