"""Children started, restarted and stopped: with real processes, no broker."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from omnibus.child_process import start_child
from omnibus.errors import StageStartError
from omnibus.workers.supervisor import FATAL_EXIT_CODE, RESTART_EXIT_CODE, ChildDeath, ProcessSpec, Supervisor
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

SLEEPER = "import signal, time; print('ready', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


def python(name: str, code: str, **env: str) -> ProcessSpec:
    return ProcessSpec(name=name, argv=[sys.executable, "-c", textwrap.dedent(code)], env=env)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(supervisor.run())
    try:
        yield task
    finally:
        supervisor.stop()
        async with asyncio.timeout(20):
            await asyncio.wait({task})


async def test_killed_child_is_started_again_and_its_death_is_reported() -> None:
    deaths: list[ChildDeath] = []

    async def listener(death: ChildDeath) -> None:
        deaths.append(death)

    supervisor = Supervisor([python("child", SLEEPER)], on_death=listener, grace=5)
    async with running(supervisor):
        first = await eventually(lambda: supervisor.pids.get("child"))
        os.kill(first, signal.SIGKILL)
        second = await eventually(lambda: supervisor.pids.get("child", first) != first and supervisor.pids["child"])
        assert alive(second)
        assert supervisor.restarts == {"child": 1}
        assert [(death.name, death.returncode) for death in deaths] == [("child", -signal.SIGKILL)]
        assert deaths[0].instance.startswith("child-")
    assert not alive(second)


async def test_death_is_reported_at_once_when_something_left_behind_holds_the_output() -> None:
    told = asyncio.Event()

    async def listener(_death: ChildDeath) -> None:
        told.set()

    leaver = """
    import subprocess, sys, time
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    print("left", left.pid, flush=True)
    time.sleep(60)
    """
    supervisor = Supervisor([python("leaver", leaver)], on_death=listener, grace=0.1)
    async with running(supervisor):
        await eventually(lambda: "left" in supervisor.last_lines["leaver"], 20)
        left = int(supervisor.last_lines["leaver"].split()[1])
        os.kill(supervisor.pids["leaver"], signal.SIGKILL)
        try:
            async with asyncio.timeout(1.0):  # its output is waited for twice as long
                await told.wait()
        finally:
            os.kill(left, signal.SIGKILL)
            supervisor.stop()


async def test_deaths_are_reported_when_a_second_signal_kills() -> None:
    """Nobody drained: others must get the tasks, whether or not the server tells of lost connections."""
    deaths: list[ChildDeath] = []

    async def listener(death: ChildDeath) -> None:
        deaths.append(death)

    supervisor = Supervisor([python("a", SLEEPER), python("b", SLEEPER)], on_death=listener)
    run = asyncio.create_task(supervisor.run())
    await eventually(lambda: len(supervisor.pids) == 2)
    run.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait({run})
    assert sorted((death.name, death.returncode) for death in deaths) == [("a", -9), ("b", -9)]


async def test_child_that_wants_to_be_is_started_again_at_once_and_no_death_is_reported(tmp_path: Path) -> None:
    deaths: list[ChildDeath] = []
    lives = tmp_path / "lives"

    async def listener(death: ChildDeath) -> None:
        deaths.append(death)

    code = f"""
    with open({str(lives)!r}, "a") as file:
        file.write("x")
    raise SystemExit({RESTART_EXIT_CODE} if len(open({str(lives)!r}).read()) < 4 else 0)
    """
    supervisor = Supervisor([python("rolling", code)], on_death=listener)
    async with asyncio.timeout(20):
        await supervisor.run()
    assert lives.read_text() == "xxxx"
    assert (deaths, supervisor.restarts) == ([], {"rolling": 0})


async def test_child_that_started_once_is_tried_again_when_it_cannot(tmp_path: Path) -> None:
    """Such as a replica after a restart: its siblings go on, and it comes back when what is missing is there."""
    lives = tmp_path / "lives"
    code = f"""
    with open({str(lives)!r}, "a") as file:
        file.write("x")
    raise SystemExit([{RESTART_EXIT_CODE}, {FATAL_EXIT_CODE}, 0][len(open({str(lives)!r}).read()) - 1])
    """
    async with asyncio.timeout(20):
        await Supervisor([python("again", code)]).run()
    assert lives.read_text() == "xxx"


async def test_child_that_cannot_start_is_reported_with_its_last_lines_and_ends_the_others() -> None:
    broken = python("stage 3 replica 0", f"print('no such checkpoint'); raise SystemExit({FATAL_EXIT_CODE})")
    supervisor = Supervisor([python("other", SLEEPER), broken], grace=5)
    async with asyncio.timeout(20):
        with pytest.raises(StageStartError, match=r"stage 3 replica 0 cannot start:\nno such checkpoint"):
            await supervisor.run()
    assert supervisor.pids == {}
    assert supervisor.restarts["stage 3 replica 0"] == 0


async def test_run_returns_when_all_children_have_ended_well() -> None:
    supervisor = Supervisor([python("a", "print('done')"), python("b", "pass")])
    async with asyncio.timeout(20):
        await supervisor.run()


async def test_child_that_the_others_need_is_stopped_when_they_have_ended(tmp_path: Path) -> None:
    order = tmp_path / "order"
    leaver = f"""
        import signal, sys, time
        def leave(*_):
            time.sleep(float(sys.argv[1]))
            open({str(order)!r}, "a").write(sys.argv[2])
            sys.exit()
        signal.signal(signal.SIGTERM, leave)
        print("ready", flush=True)
        time.sleep(60)
        """
    first, last = python("first", leaver), python("last", leaver)
    supervisor = Supervisor(
        [
            replace(last, argv=[*last.argv, "0", "last"], last=True),
            replace(first, argv=[*first.argv, "0.2", "first "]),
        ]
    )
    async with running(supervisor):
        await eventually(lambda: set(supervisor.last_lines.values()) == {"ready"})
    assert order.read_text() == "first last"


async def test_stop_kills_what_outlasts_the_grace(capfd: pytest.CaptureFixture[str]) -> None:
    supervisor = Supervisor([python("stubborn", STUBBORN)], grace=0.3)
    async with running(supervisor) as task:
        pid = await eventually(lambda: supervisor.pids.get("stubborn"))
        await eventually(lambda: "stubborn | ready" in capfd.readouterr().err)
        supervisor.stop()
        async with asyncio.timeout(10):
            await task
    assert not alive(pid)


async def test_backoff_grows_when_a_child_keeps_dying() -> None:
    supervisor = Supervisor([python("dying", "raise SystemExit(1)")])
    deaths: list[float] = []

    async def listener(_death: ChildDeath) -> None:
        deaths.append(asyncio.get_running_loop().time())

    supervisor = Supervisor([python("dying", "import os; os._exit(1)")], on_death=listener)
    async with running(supervisor):
        await eventually(lambda: len(deaths) >= 4, 15)
    gaps = [later - earlier for earlier, later in itertools.pairwise(deaths)]
    assert gaps[2] > 0.4
    assert gaps[2] > gaps[0]


GRANDPARENT = """
import asyncio, os, sys
from omnibus.workers.supervisor import ProcessSpec, Supervisor
child = '''
import os, sys, time
from omnibus.lineage import die_with_parent
die_with_parent()
if os.fork() == 0:
    print("pid", os.getpid(), flush=True)
else:
    print("pid", os.getpid(), flush=True)
time.sleep(60)
'''
asyncio.run(Supervisor([ProcessSpec(name="c", argv=[sys.executable, "-c", child])]).run())
"""


async def test_children_and_what_they_forked_die_when_the_supervisor_is_killed() -> None:
    process = await start_child(sys.executable, "-c", GRANDPARENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    async with asyncio.timeout(20):
        pids = [int((await process.stderr.readline()).split()[-1]) for _ in range(2)]
    assert all(alive(pid) for pid in pids)
    process.kill()
    await process.wait()
    process.close()
    await eventually(lambda: not any(alive(pid) for pid in pids), what="the children are gone")


async def test_process_group_of_a_dead_child_is_ended(tmp_path: Path) -> None:
    left = tmp_path / "pid"
    code = f"""
    import pathlib, subprocess, sys
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path({str(left)!r}).write_text(str(other.pid))
    """
    async with asyncio.timeout(20):
        await Supervisor([python("leaver", code)]).run()
    await eventually(lambda: not alive(int(left.read_text())))
