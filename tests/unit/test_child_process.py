"""Programs started without fork: their output, their end, and what is done to them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omnibus.child_process import start_child
from omnibus.lineage import tied
from tests.support.processes import is_running
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit
_SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")


async def test_no_handler_of_fork_runs_when_a_program_is_started() -> None:
    forked: list[int] = []
    os.register_at_fork(before=lambda: forked.append(1))
    child = await start_child(*tied(("/bin/true",)), stdin=subprocess.DEVNULL, start_new_session=True)
    assert await child.wait() == 0
    assert not forked


@pytest.mark.parametrize("code", [0, 3, 75])
async def test_exit_code_is_returned_to_all_who_wait(code: int) -> None:
    child = await start_child(sys.executable, "-c", f"raise SystemExit({code})")
    assert await asyncio.gather(child.wait(), child.wait()) == [code, code]
    assert (await child.wait(), child.returncode) == (code, code)


async def test_waiting_can_be_cancelled_and_begun_again() -> None:
    child = await start_child(*_SLEEPS)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await child.wait()
    assert child.returncode is None
    child.kill()
    assert await child.wait() == -signal.SIGKILL
    child.terminate()  # nothing happens


async def test_output_is_read_by_lines_and_beyond_the_end() -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr); print('three', end='')"
    child = await start_child(sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    await child.wait()
    assert child.stdout is not None
    assert child.stderr is not None
    assert await child.stdout.readline() == b"one\n"
    assert await child.stdout.read() == b"three"
    assert await child.stderr.read() == b"two\n"


async def test_output_that_others_hold_open_ends_when_it_is_closed() -> None:
    code = f"import subprocess; print(subprocess.Popen({_SLEEPS!r}).pid, flush=True)"
    child = await start_child(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert child.stdout is not None
    holder = int(await child.stdout.readline())
    assert await child.wait() == 0
    rest = asyncio.create_task(child.stdout.read())
    try:
        await asyncio.sleep(0)
        assert not rest.done()
        child.close()
        async with asyncio.timeout(10):
            assert await rest == b""
        child.close()
    finally:
        os.kill(holder, signal.SIGKILL)


async def test_end_of_its_input_is_its_own_when_it_is_a_pipe() -> None:
    child = await start_child(sys.executable, "-c", "input()", stdin=subprocess.PIPE)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await child.wait()
    child.kill()
    await child.wait()


@pytest.mark.parametrize("name", ["no-such-program", "/etc/hostname"])
async def test_a_program_that_cannot_be_run_is_an_error(name: str) -> None:
    with pytest.raises(OSError, match=name):
        await start_child(name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_tied_program_ends_with_its_owner(tmp_path: Path, number: signal.Signals) -> None:
    said = tmp_path / "pid"
    code = f"""if True:
        import signal, subprocess, time
        from omnibus.lineage import tied
        child = subprocess.Popen(tied({_SLEEPS!r}, signal.Signals({int(number)})))
        open({str(said)!r}, "w").write(f"{{child.pid}} ")
        time.sleep(60)
    """
    owner = await start_child(sys.executable, "-c", code)
    await eventually(lambda: said.exists() and said.read_text().endswith(" "), 20)
    pid = int(said.read_text())
    await eventually(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().count(b"\0") == len(_SLEEPS), 20)
    owner.kill()
    await owner.wait()
    await eventually(lambda: not is_running(pid), 10)
