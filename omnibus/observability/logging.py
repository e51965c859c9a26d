"""Logs: structlog events, and everything that libraries log, in one format on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from omnibus.errors import ConfigError

LogFormat = Literal["auto", "console", "json"]
LEVELS = ("debug", "info", "warning", "error", "critical")

_TAKEN_OVER = ("uvicorn", "uvicorn.error", "uvicorn.access")
"""Loggers with handlers of their own."""


def configure_logging(level: str = "info", format: LogFormat = "auto", *, stream: TextIO | None = None) -> None:  # noqa: A002 the setting's name
    """Set logging up for this process; call it once, at its root (again replaces it).

    `auto` is console on a terminal and JSON elsewhere. Output goes to `stream`, stderr by default: stdout belongs to
    results. Records of the standard library, uvicorn's included, come out in the same format.

    Raises ConfigError for a level that is not one of LEVELS.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r} is not one of {', '.join(LEVELS)}", param="log_level")
    number = logging.getLevelNamesMapping()[level.upper()]
    out = stream if stream is not None else sys.stderr
    _route_standard_library(number, out, _renderers(format, out))
    structlog.configure(
        processors=[*_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # or loggers made before this call keep the old configuration
    )


def configure_quietly(level: str) -> None:
    """Set up logs for a program that uses Omnibus as a library: our events from `level` on, on stderr, and nothing else touched.

    Does nothing where structlog is configured already: then the application decides. Raises ConfigError as above.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r} is not one of {', '.join(LEVELS)}", param="log_level")
    if structlog.is_configured():
        return
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _plain_event,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str, **bound: object) -> FilteringBoundLogger:
    """Return a logger for one module, with fields bound to every event:
    `get_logger(__name__, stage=…).info(LogEvent.REPLICA_UP)`."""
    logger: FilteringBoundLogger = structlog.get_logger(name, **bound)
    return logger


def _route_standard_library(level: int, out: TextIO, renderers: list[Processor]) -> None:
    handler = logging.StreamHandler(out)
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared(), processors=renderers)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _TAKEN_OVER:
        taken = logging.getLogger(name)
        taken.handlers.clear()
        taken.propagate = True


def _shared() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _plain_event,
    ]


def _renderers(log_format: LogFormat, out: TextIO) -> list[Processor]:
    console = out.isatty() if log_format == "auto" else log_format == "console"
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if console:
        console_traceback = structlog.dev.RichTracebackFormatter(show_locals=False)
        return [
            remove_meta,
            structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=console_traceback),
        ]
    # Without local variables, here and above: prompts and keys are among them.
    as_data = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [remove_meta, structlog.processors.ExceptionRenderer(as_data), structlog.processors.JSONRenderer()]


def _plain_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the event's enum member by its plain text."""
    event["event"] = str(event["event"])
    return event
