"""Parts of the product that a model replaces, wherever they are used by name."""

from __future__ import annotations

import importlib.metadata
import sys
from functools import cache
from typing import Any

import omnibus.broker.link
import omnibus.flows.pacing
import omnibus.flows.reader
import omnibus.flows.stored_flow
import omnibus.orchestrator.forwarding
from omnibus.broker.puller import Puller
from omnibus.broker.watch import Watch
from omnibus.registry.presence.heartbeat import Registration
from omnibus.workers import job_builder
from omnibus.workers.initialisation.starting import start_engine
from tests.simulation.pulling import SimPuller
from tests.simulation.replicas import InlineThreads, QuietRegistration, start_at_once
from tests.simulation.watching import SimWatch

_WINDOW = 16
"""Bytes that the writer of a flow may be ahead: texts are short here."""
_ADMISSION = 15.0
"""Instead of a minute, in which one deadline is looked at sixty times."""


def substitutes(*, registry: bool) -> tuple[tuple[Any, str, Any], ...]:
    """(place, name, what takes its place); without a registry nobody beats."""
    return (
        *_everywhere(Puller, SimPuller),
        *_everywhere(Watch, SimWatch),
        *_everywhere(start_engine, start_at_once),
        *(() if registry else _everywhere(Registration, QuietRegistration)),
        (omnibus.orchestrator.forwarding, "ADMISSION", _ADMISSION),
        (job_builder, "EngineThreads", InlineThreads),
        (omnibus.flows.pacing, "WINDOW", _WINDOW),
        (omnibus.flows.reader, "REPORT_EVERY", _WINDOW // 4),
        (omnibus.flows.stored_flow, "_BATCH", 2),
        (importlib.metadata, "version", lambda _name: "0"),  # it reads files
        (omnibus.broker.link, "NatsClient", lambda _waiting: None),  # nobody connects
    )


@cache
def _everywhere(real: Any, substitute: Any) -> tuple[tuple[Any, str, Any], ...]:
    """All places of the product that use something by its name."""
    name = real.__name__
    ours = [module for key, module in sorted(sys.modules.items()) if key.startswith("omnibus.")]
    return tuple((module, name, substitute) for module in ours if vars(module).get(name) is real)
