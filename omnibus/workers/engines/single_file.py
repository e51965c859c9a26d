"""Checkpoints that come as one file, GGUF or ZIP: made a folder once, in the cache, which loaders then take."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnibus.errors import CheckpointMissing
from omnibus.lineage import PARENT_VARIABLE
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.settings import cache_dir, inherited_environment

SUFFIXES = (".gguf", ".zip")
TIMEOUT = 3600.0
"""Seconds that a file may take, or another process that makes the same folder."""
LOG_EVERY = 10.0
"""Seconds between two lines of the log about a conversion."""
_FORMAT = 1
"""Grows when folders are made in another way."""
_PAUSE = 0.1

log = get_logger(__name__)


def is_single_file(path: Path) -> bool:
    """Whether it is a checkpoint in one file."""
    return path.suffix in SUFFIXES and path.is_file()


def folder_of(file: Path) -> Path:
    """The folder with the content of such a file, made the first time; blocks.

    A GGUF is converted to bfloat16 weights, with its tokenizer and chat template. Only a complete folder has its final name;
    of several processes that want the same one, one makes it. Raises CheckpointMissing.
    """
    target = target_of(file)
    try:
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target.with_name(f"{target.name}.lock")):
                if not target.is_dir():
                    _make(file, target)
    except (OSError, zipfile.BadZipFile, subprocess.TimeoutExpired) as error:
        raise CheckpointMissing(f"cannot make a checkpoint of {file} in {target.parent}: {error}") from error
    return target


def target_of(file: Path) -> Path:
    """The name of that folder, another one when the file changes."""
    status = file.stat()
    name = f"{_FORMAT} {file.resolve()} {status.st_size} {status.st_mtime_ns}"
    return cache_dir() / "checkpoints" / f"{file.stem}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _make(file: Path, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that died
    log.info(LogEvent.CHECKPOINT_CONVERTING, file=str(file), folder=str(target))
    started = time.monotonic()
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            check_space(sum(one.file_size for one in archive.infolist()), part.parent)
            archive.extractall(part)  # no member grows beyond its stated size
    else:
        _convert(file, part)
    for made in [*part.rglob("*"), part]:
        _sync(made)  # after a power loss, too, what has the final name is complete
    part.rename(target)
    log.info(LogEvent.CHECKPOINT_CONVERTED, folder=str(target), seconds=round(time.monotonic() - started, 1))


def _convert(file: Path, part: Path) -> None:
    """Convert a GGUF in a process of its own, which imports torch; its progress is shown on a terminal."""
    quiet = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    started = time.monotonic()
    with subprocess.Popen(  # noqa: S603 two paths after our own module
        [sys.executable, "-m", "omnibus.workers.engines.gguf_conversion", file, part],
        env={**inherited_environment(), **quiet, "HF_HUB_OFFLINE": "1", PARENT_VARIABLE: str(os.getpid())},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            said = _awaited(process, file, part, started)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = said.strip().splitlines() or [f"the conversion ended with {process.returncode}"]
        raise CheckpointMissing(f"cannot convert {file}: {lines[-1]}")


def _awaited(process: subprocess.Popen[str], file: Path, part: Path, started: float) -> str:
    """The output of a process that is awaited. Logs meanwhile how far it is; raises TimeoutExpired after TIMEOUT."""
    while True:
        try:
            return process.communicate(timeout=LOG_EVERY)[0]
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - started
            if seconds > TIMEOUT:
                raise
            written = sum(made.stat().st_size for made in part.rglob("*") if made.is_file())
            far = {"bytes": written} if written else {}  # reading comes first, and takes longer
            log.info(LogEvent.CHECKPOINT_CONVERTING, file=str(file), seconds=round(seconds, 1), **far)


def check_space(nbytes: int, folder: Path) -> None:
    """Raise CheckpointMissing where a folder's disk has no room for so many bytes, before any is written."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise CheckpointMissing(
            f"the checkpoint takes {nbytes:,} bytes in {folder}, where {free:,} are free; set OMNIBUS_CACHE_DIR"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        until, is_noted = time.monotonic() + TIMEOUT, False
        while not _try_lock(file.fileno()):
            if time.monotonic() > until:
                raise CheckpointMissing(f"another process holds {path} for more than {TIMEOUT:g} s")
            if not is_noted:
                log.info(LogEvent.CHECKPOINT_AWAITED, lock=str(path))
            is_noted = True
            time.sleep(_PAUSE)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
