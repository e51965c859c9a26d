"""Front doors as processes: one, or several on one port, which the kernel shares callers out to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from omnibus.cli.metrics_port import shared_metrics, sharing
from omnibus.cli.process_group import log_format, supervise
from omnibus.cli.root import end_with_parent, run, start_logging
from omnibus.frontdoor.api_keys import hashed_setting
from omnibus.frontdoor.server import bound
from omnibus.settings import Settings
from omnibus.workers.supervisor import ProcessSpec, Supervisor

NAME = "frontdoor"
_GRACE = 15.0
"""Seconds that front doors have to answer what runs when they are stopped; each gives up before that."""


@contextmanager
def port_taken(settings: Settings) -> Iterator[Settings]:
    """The settings with a port that is free; raises PortTaken. A process that is started again keeps its port.

    Several front doors share it with a socket that is held here, and does not listen: nobody else gets it while they start.
    """
    if settings.port != 0:  # another server there would answer in the front door's place, or share its port
        bound(settings.host, settings.port).close()
    is_shared = settings.frontdoors > 1
    with closing(bound(settings.host, settings.port, share=is_shared)) as held:
        port = held.getsockname()[1]
        if not is_shared:
            held.close()
        yield settings.model_copy(update={"port": port})


def processes(settings: Settings, environment: Mapping[str, str], *words: str) -> list[ProcessSpec]:
    """The front doors that the settings want, with these words of their command line behind its name."""
    hashed = tuple(map(hashed_setting, settings.api_keys))
    known = settings.model_copy(update={"api_keys": hashed, "frontdoors": 1, "share_port": settings.frontdoors > 1})
    argv, env = (sys.executable, "-m", "omnibus.cli", NAME, *words), {**known.environment(), **environment}
    if settings.frontdoors == 1:
        return [ProcessSpec(name=NAME, argv=argv, env=env)]
    return [ProcessSpec(name=f"{NAME}-{number}", argv=argv, env=env) for number in range(settings.frontdoors)]


def serve_several(settings: Settings, *words: str) -> None:
    """Run several front doors, each started again when it dies, until Ctrl-C or SIGTERM."""
    start_logging(settings)
    end_with_parent()
    with port_taken(settings) as taken:
        front_doors = processes(taken, {"OMNIBUS_LOG_FORMAT": log_format(taken)}, *words)
        with shared_metrics() as folder:
            run(supervise(Supervisor(sharing(front_doors, folder), grace=_GRACE)))
