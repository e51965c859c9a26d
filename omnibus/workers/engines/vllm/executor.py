"""vLLM executors whose EngineCore process dies with the replica that started it, and leaves it the CPU.

AsyncLLM runs its EngineCore in a child process, which outlives a replica killed with SIGKILL, and keeps its memory, its
devices and, where it was forked, its sockets. The executor is the one piece of our code that vLLM runs inside that
process, forked or spawned: here it asks the kernel for the death signal. Workers of a multi-process executor then notice
EngineCore's end by vLLM's own pipe.

Where the model is computed on the CPU, EngineCore and its workers compute at a lower priority than the processes that keep
leases, queues and connections: with all cores busy those were up to 0.1 s late for work of a millisecond.
"""

from __future__ import annotations

import multiprocessing
import os
import signal

from vllm.platforms import current_platform
from vllm.v1.executor.abstract import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from omnibus.lineage import set_death_signal

NICENESS = 10
"""Nice value of what computes on the CPU: beside a process of 0 it has a tenth of a core that both want."""


def _bind() -> None:
    """Have this process die with the thread that started it."""
    set_death_signal()
    parent = multiprocessing.parent_process()
    # The parent may have died before the call; then nobody will ever send the signal.
    if parent is not None and os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)


def _yield_cpu() -> None:
    """Have this thread, and those that it starts, compute while others have less to do."""
    if current_platform.is_cpu():
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(before, NICENESS))


class BoundUniProcExecutor(UniProcExecutor):  # type: ignore[misc]  # vLLM has no types here
    """One worker inside EngineCore, bound to the replica's life."""

    def _init_executor(self) -> None:
        _bind()
        _yield_cpu()
        super()._init_executor()


class BoundMultiprocExecutor(MultiprocExecutor):  # type: ignore[misc]  # vLLM has no types here
    """Workers in processes of their own, EngineCore bound to the replica's life."""

    def _init_executor(self) -> None:
        _bind()
        _yield_cpu()
        super()._init_executor()


def bound(executor: type[Executor]) -> type[Executor]:
    """The bound form of vLLM's local executors; others (Ray) have a life of their own and come back unchanged."""
    return {UniProcExecutor: BoundUniProcExecutor, MultiprocExecutor: BoundMultiprocExecutor}.get(executor, executor)
