"""Logs come out in one format from everywhere; metrics have base units and bounded labels."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import CollectorRegistry

from omnibus.errors import ConfigError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import (
    LogFormat,
    as_sentence,
    configure_logging,
    configure_quietly,
    get_logger,
    take_over,
)
from omnibus.observability.metrics import Metrics

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_is_one_json_object_when_stderr_is_no_terminal() -> None:
    stream = io.StringIO()
    log = get_logger("omnibus.test", stage="thinker")  # made before logging is configured, as module loggers are
    configure_logging("info", stream=stream)

    log.info(LogEvent.TASK_FINISHED, rid="r1")

    (line,) = _lines(stream)
    assert line.pop("timestamp")
    assert line == {
        "event": "task.finished",
        "level": "info",
        "logger": "omnibus.test",
        "stage": "thinker",
        "request_id": "r1",
    }


def test_standard_library_and_uvicorn_come_out_alike_when_they_log() -> None:
    stream = io.StringIO()
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.addHandler(logging.StreamHandler(io.StringIO()))
    uvicorn.propagate = False
    configure_logging("info", "json", stream=stream)

    logging.getLogger("some.library").warning("lost %d", 3)
    uvicorn.warning("slow")
    logging.getLogger("some.library").info("hello")

    assert [(line["event"], line["level"], line["logger"]) for line in _lines(stream)] == [
        ("lost 3", "warning", "some.library"),
        ("slow", "warning", "uvicorn.error"),
    ]


def test_library_logs_once_when_it_has_a_handler_of_its_own() -> None:
    stream, own = io.StringIO(), io.StringIO()
    configure_logging("info", "json", stream=stream)
    library = logging.getLogger("late.library")
    library.addHandler(logging.StreamHandler(own))  # as a library does that is imported later

    take_over("late.library")
    logging.getLogger("late.library.http").warning("no answer")

    assert [line["event"] for line in _lines(stream)] == ["no answer"]
    assert own.getvalue() == ""


def test_library_keeps_its_handler_when_nobody_else_logs_for_it() -> None:
    own = io.StringIO()
    logging.getLogger().handlers[:] = []
    library = logging.getLogger("lonely.library")
    library.addHandler(logging.StreamHandler(own))

    take_over("lonely.library")
    library.warning("no answer")

    assert own.getvalue() == "no answer\n"


def test_traceback_is_in_the_line_when_an_exception_is_logged() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    try:
        {}["broken"]
    except KeyError:
        get_logger("omnibus.test").exception(LogEvent.EVENT_FAILED)

    (line,) = _lines(stream)
    assert "KeyError" in str(line["exception"])


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_local_variables_stay_out_when_an_exception_is_logged(log_format: LogFormat) -> None:
    """Prompts and keys are among them."""
    stream = io.StringIO()
    configure_logging("info", log_format, stream=stream)

    def fail(prompt: str) -> None:
        raise ValueError(len(prompt))

    try:
        fail("a-private-thing".replace("-", " "))
    except ValueError:
        get_logger("omnibus.test").exception(LogEvent.EVENT_FAILED)
    assert "ValueError" in stream.getvalue()
    assert "a private thing" not in stream.getvalue()


def test_local_variables_stay_out_when_a_program_uses_omnibus_as_a_library(capsys: pytest.CaptureFixture[str]) -> None:
    configure_quietly("info")

    def fail(prompt: str) -> None:
        raise ValueError(len(prompt))

    try:
        fail("a-private-thing".replace("-", " "))
    except ValueError:
        get_logger("omnibus.test").exception(LogEvent.EVENT_FAILED)
    logged = capsys.readouterr().err
    assert "ValueError" in logged
    assert "a private thing" not in logged


def test_nothing_is_written_when_the_event_is_below_the_level() -> None:
    stream = io.StringIO()
    configure_logging("WARNING", "json", stream=stream)
    get_logger("omnibus.test").info(LogEvent.TASK_RECEIVED)
    assert stream.getvalue() == ""


def test_console_lines_are_text_when_asked_for() -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream=stream)
    get_logger("omnibus.test").info(LogEvent.REPLICA_UP, stage="dit")
    assert re.search(r"info.*replica\.up.*stage=dit", stream.getvalue())


def test_libraries_are_heard_when_faults_are_looked_for() -> None:
    stream = io.StringIO()
    configure_logging("debug", "json", stream=stream)
    logging.getLogger("some.library").info("hello")
    assert [line["event"] for line in _lines(stream)] == ["hello"]


def test_console_line_has_the_time_of_day_and_no_module_of_ours() -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream=stream)
    get_logger("omnibus.workers.replica").info(LogEvent.REPLICA_UP, stage="dit", rid="r1")
    logging.getLogger("some.library").warning("lost")
    ours, theirs = stream.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[info\] replica\.up +request_id=r1 stage=dit", ours)
    assert theirs.endswith("[some.library]")


@pytest.mark.parametrize(("log_format", "colored"), [("color", True), ("console", False)])
def test_color_is_the_formats_when_the_stream_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, colored: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    configure_logging("info", log_format, stream=stream)
    get_logger("omnibus.test").info(LogEvent.REPLICA_UP)
    assert ("\x1b[" in stream.getvalue()) is colored


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            '{"stage": 1, "event": "replica.up", "level": "info", "timestamp": "x", "logger": "y"}',
            "info: replica.up stage=1",
        ),
        (
            '{"event": "e", "level": "error", "exception": [{"exc_type": "KeyError", "exc_value": "k"}]}',
            "error: e, KeyError: k",
        ),
        ('{"event": "replica.down", "stage": 0, "error": "no such file", "code": "gone"}', "no such file (gone)"),
        (
            '08:45:25 [error] replica.down [__main__] code=gone error="stage \'a\': no \\"b\\"" stage=2',
            "stage 'a': no \"b\" (gone)",
        ),
        ('{"a": 1}', '{"a": 1}'),
        ("{broken", "{broken"),
        ("\x1b[31mred\x1b[0m words", "red words"),
    ],
)
def test_line_of_a_log_is_a_sentence_when_people_read_it(line: str, sentence: str) -> None:
    assert as_sentence(line) == sentence


def test_config_error_when_the_level_is_unknown() -> None:
    with pytest.raises(ConfigError, match="'loud' is not one of debug, info"):
        configure_logging("loud")


def test_every_event_is_named_subject_and_what_happened() -> None:
    assert all(re.fullmatch(r"[a-z_]+\.[a-z_]+", event) for event in LogEvent)


def test_metrics_count_in_their_own_registry_when_there_are_two() -> None:
    first, second = Metrics(), Metrics()
    first.requests.labels(pipeline="omni", state="done").inc()

    assert b'omnibus_requests_total{pipeline="omni",state="done"} 1.0' in first.exposition()
    assert second.registry.get_sample_value("omnibus_requests_total", {"pipeline": "omni", "state": "done"}) is None


def test_metrics_have_base_units_and_bounded_labels() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    allowed = {
        "pipeline",
        "stage",
        "state",
        "code",
        "kind",
        "outcome",
        "status",
        "location",
        "direction",
        "where",
        "route",
        "lane",
    }
    for family in registry.collect():
        assert family.name.startswith("omnibus_")
        assert not family.name.endswith(("_ms", "_mb", "_milliseconds", "_kilobytes"))
        assert family.type != "histogram" or family.name.endswith(("_seconds", "_batch_size"))
        assert family.documentation
    metrics = vars(Metrics(CollectorRegistry()))
    labels = {label for metric in metrics.values() for label in getattr(metric, "_labelnames", ())}
    assert labels <= allowed


async def test_metrics_count_the_tasks_of_the_loop_when_asked_on_one() -> None:
    metrics = Metrics()
    before = _tasks(metrics)
    waiting = [asyncio.create_task(asyncio.sleep(60)) for _ in range(3)]
    assert _tasks(metrics) == before + 3
    for task in waiting:
        task.cancel()


def test_metrics_count_no_tasks_when_there_is_no_loop() -> None:
    assert _tasks(Metrics()) == 0


def _tasks(metrics: Metrics) -> float:
    metrics.exposition()
    value = metrics.registry.get_sample_value("omnibus_asyncio_tasks", {"where": "frontdoor"})
    assert value is not None
    return value
