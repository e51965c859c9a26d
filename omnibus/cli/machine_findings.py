"""The examination of this machine: limits, shared memory, GPUs, ports and certificates, with a remedy for each fault."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omnibus.cli.port_finding import Finding, port_finding

if TYPE_CHECKING:
    from omnibus.broker.nats_access import Access
    from omnibus.settings import Settings

_FEWEST_FILES = 4096
_FEWEST_SHARED = 64 << 20
"""Bytes of shared memory below which large outputs pass through the broker all the time."""
_DAYS_LEFT = 30
"""Days before a certificate's end from which it is a fault."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 the system's name of it


async def machine_findings(settings: Settings, role: str) -> AsyncIterator[Finding]:
    """Examine this machine for a process of the role, without its broker."""
    yield _open_files()
    yield _shared_memory(settings)
    yield _gpus()
    for name, host, port in (
        ("port", settings.host, settings.port),
        ("metrics port", settings.metrics_host, settings.metrics_port),
    ):
        if port:
            yield await port_finding(name, host, port, is_needed=role == "frontdoor" and name == "port")


def certificate_findings(access: Access) -> Iterator[Finding]:
    """Examine the certificates that the credentials name, or that lie beside them; raises nothing."""
    from cryptography import x509  # noqa: PLC0415 for those who have some

    paths = access.certificates()
    if not paths:
        yield Finding("certificates", True, "none: this machine speaks to NATS without TLS of its own")
    for path in paths:
        try:
            ends = min(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(path.read_bytes()))
        except (OSError, ValueError) as error:
            yield Finding("certificates", False, f"{path} cannot be read as certificate: {error}")
            continue
        days = int((ends.timestamp() - time.time()) // 86400)
        remedy = f": make it anew with `omnibus nats credentials --dir {path.parent}` (of the server, remove it first)"
        when = f"ends on {ends:%Y-%m-%d}, in {days} days" if days >= 0 else f"ended on {ends:%Y-%m-%d}"
        yield Finding("certificates", days >= _DAYS_LEFT, f"{path} {when}{'' if days >= _DAYS_LEFT else remedy}")


def _open_files() -> Finding:
    """The limit up to which our processes raise their own."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    fine = most == resource.RLIM_INFINITY or most >= _FEWEST_FILES
    remedy = "" if fine else f": raise it to {_FEWEST_FILES} or more, `ulimit -Hn` or LimitNOFILE= of a service"
    return Finding("open files", fine, f"{most if most >= 0 else 'any number'} a process{remedy}")


def _shared_memory(settings: Settings) -> Finding:
    if not settings.shared_memory:
        return Finding("shared memory", True, "not used: OMNIBUS_SHARED_MEMORY is 0")
    if not _SHARED_MEMORY.is_dir() or not os.access(_SHARED_MEMORY, os.W_OK):
        remedy = "mount a tmpfs there, or set OMNIBUS_SHARED_MEMORY=0"
        return Finding("shared memory", False, f"{_SHARED_MEMORY} cannot be written to: {remedy}")
    free, total = shutil.disk_usage(_SHARED_MEMORY).free, shutil.disk_usage(_SHARED_MEMORY).total
    text = f"{free >> 20} of {total >> 20} MiB free, {int(settings.shared_memory) >> 20} MiB wanted by each replica at the most"
    remedy = (
        ": large outputs pass through the broker; give a container --shm-size=1g, a pod an emptyDir of medium Memory"
    )
    return Finding("shared memory", free >= _FEWEST_SHARED, text + ("" if free >= _FEWEST_SHARED else remedy))


def _gpus() -> Finding:
    from omnibus.cli.collect_env import GPUS, run_program  # noqa: PLC0415

    if not shutil.which(GPUS[0]):
        return Finding("GPUs", True, "none: engines run on the CPU")
    code, said = run_program(*GPUS)
    return Finding(
        "GPUs", code == 0, said if code == 0 else f"{GPUS[0]} fails ({said}): load the driver, or restart the machine"
    )
