"""Logs: structlog events, and everything that libraries log, in one format on stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from datetime import datetime
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor, WrappedLogger

from omnibus.errors import ConfigError
from omnibus.observability.rate_limit import RateLimit
from omnibus.settings import LogFormat

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CONSOLE_ERROR = re.compile(r"\d\d:\d\d:\d\d \[error\] .* code=(?P<code>\w+) error=(?P<error>\"(?:[^\"\\]|\\.)*\")")
_NOT_SAID = ("event", "level", "timestamp", "logger", "exception", "exc_info")
LEVELS = ("debug", "info", "warning", "error", "critical")

_TAKEN_OVER = ("uvicorn", "uvicorn.error", "uvicorn.access")
"""Loggers with handlers of their own."""


class _CurrentStderr(io.TextIOBase):
    """The stderr of the moment: a live table puts itself in its place for a while."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


_CURRENT_STDERR = _CurrentStderr()


def configure_logging(
    level: str = "info",
    format: LogFormat = "auto",  # noqa: A002 the setting's name
    *,
    stream: TextIO | None = None,
    for_good: bool = False,
) -> None:
    """Set logging up for this process; call it once, at its root (again replaces it).

    `auto` is console on a terminal and JSON elsewhere. Output goes to `stream`, stderr by default: stdout belongs to
    results. Records of the standard library, uvicorn's included, come out in the same format. `for_good`: it is not called
    again in this process, so that loggers are made once; otherwise each line makes one anew, also one that is filtered out.

    Raises ConfigError for a level that is not one of LEVELS.
    """
    number = _number_of(level)
    out = stream if stream is not None else cast("TextIO", _CURRENT_STDERR)
    _route_standard_library(number, out, _renderers(format, out))
    structlog.configure(
        processors=[RateLimit(), *_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=for_good,  # else loggers that were used before this call keep the old configuration
    )


def configure_quietly(level: str) -> None:
    """Set up logs for a program that uses Omnibus as a library: our events from `level` on, on stderr, and nothing else touched.

    Does nothing where structlog is configured already: then the application decides. Raises ConfigError as above.
    """
    number = _number_of(level)
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _plain_event,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback),
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


def take_over(library: str) -> None:
    """Have a library, once it is imported, log nothing twice: by a handler of its own, and by those of this process.

    Does nothing where the process has no handlers.
    """
    logger = logging.getLogger(library)
    if logger.propagate and logging.getLogger().handlers:
        logger.handlers.clear()


def _number_of(level: str) -> int:
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r} is not one of {', '.join(LEVELS)}", param="log_level")
    return logging.getLevelNamesMapping()[level.upper()]


def _route_standard_library(level: int, out: TextIO, renderers: list[Processor]) -> None:
    handler = logging.StreamHandler(out)
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared(), processors=renderers)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # What libraries say about themselves at INFO is for those who look for a fault.
    root.setLevel(logging.WARNING if level == logging.INFO else level)
    logging.getLogger("omnibus").setLevel(level)
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
    shown = ("color" if out.isatty() else "json") if log_format == "auto" else log_format
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if shown != "json":
        in_color = (shown == "color" or out.isatty()) and not os.environ.get("NO_COLOR")
        console = structlog.dev.ConsoleRenderer(
            colors=in_color, exception_formatter=_traceback, pad_event_to=0, pad_level=False
        )
        return [remove_meta, _for_people, console]
    # Without local variables, here and in tracebacks for people: prompts and keys are among them.
    as_data = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [remove_meta, structlog.processors.ExceptionRenderer(as_data), structlog.processors.JSONRenderer()]


def _traceback(out: TextIO, error: ExcInfo) -> None:
    """A traceback for people."""
    from rich.console import Console  # noqa: PLC0415 4 MiB that few processes ever need
    from rich.traceback import Traceback  # noqa: PLC0415

    out.write("\n")
    Console(file=out, color_system="truecolor").print(Traceback.from_exception(*error, width=None, word_wrap=True))


def _for_people(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The time of day by this machine's clock; the names of our modules are left out."""
    event["timestamp"] = datetime.now().astimezone().strftime("%H:%M:%S")
    if str(event.get("logger", "")).startswith("omnibus"):
        del event["logger"]
    return event


def as_sentence(line: str) -> str:
    """A line of a log for people to read, whatever it was written as."""
    plain = _ANSI.sub("", line)
    if (failed := _CONSOLE_ERROR.match(plain)) is not None:
        return f"{json.loads(failed['error'])} ({failed['code']})"
    try:
        record = json.loads(plain) if plain.startswith("{") else None
    except ValueError:
        record = None
    if not isinstance(record, dict) or "event" not in record:
        return plain
    raised = [f"{one['exc_type']}: {one['exc_value']}" for one in record.get("exception") or () if "exc_type" in one]
    if "error" in record:
        code = f" ({record['code']})" if "code" in record else ""
        return ", ".join((f"{record['error']}{code}", *raised))
    facts = [f"{name}={value}" for name, value in record.items() if name not in _NOT_SAID]
    return ", ".join((" ".join([f"{record.get('level', 'info')}:", record["event"], *facts]), *raised))


def _plain_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the event's enum member by its plain text, and short names by those that people see."""
    event["event"] = str(event["event"])
    for short in ("rid", "request"):  # one name for people, here as on the command line and over HTTP
        if short in event:
            event["request_id"] = event.pop(short)
    return event
