"""Numbers of metrics in files: other processes read them, and the next process of the name counts on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, values
from prometheus_client.mmap_dict import MmapedDict

from omnibus.observability.metrics import Metrics, SharedMetrics
from omnibus.observability.shared_values import shared_values

pytestmark = pytest.mark.unit
_MANY = 400
"""Pipelines whose numbers need more than the file has at first."""


Start = Callable[[], Metrics]
"""Makes the metrics of a process that has just started over the same files."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "worker"
    own.mkdir()
    return own


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    opened: list[dict[str, MmapedDict]] = []

    def started() -> Metrics:
        opened.append({})
        monkeypatch.setattr(values, "ValueClass", shared_values(folder, opened[-1]))
        return Metrics(CollectorRegistry())

    yield started
    for files in opened:
        for file in files.values():
            file._f.close()


def seen(folder: Path, name: str, **labels: str) -> float | None:
    """A number as another process reads it."""
    return SharedMetrics(folder.parent).registry.get_sample_value(name, {**labels, "process": folder.name})


def test_number_is_read_by_others_and_counted_on_by_the_next_process(folder: Path, start: Start) -> None:
    for total in (1.0, 2.0):
        metrics = start()
        metrics.redriven.labels("p").inc()
        assert seen(folder, "omnibus_requests_redriven_total", pipeline="p") == total


def test_number_is_still_the_files_when_the_file_has_grown(folder: Path, start: Start) -> None:
    metrics = start()
    early = metrics.stage_seconds.labels("early", "0")
    size = (folder / "histogram_own.db").stat().st_size
    for number in range(_MANY):
        metrics.stage_seconds.labels(f"p{number}", "0").observe(0.5)
    assert (folder / "histogram_own.db").stat().st_size > size

    early.observe(0.25)

    assert seen(folder, "omnibus_stage_seconds_sum", pipeline="early", stage="0") == 0.25
    assert seen(folder, "omnibus_stage_seconds_sum", pipeline=f"p{_MANY - 1}", stage="0") == 0.5


def test_gauge_goes_down_and_is_set_when_processes_share_metrics(folder: Path, start: Start) -> None:
    metrics = start()
    busy = metrics.busy_slots.labels("p", "0")
    busy.inc()
    busy.inc()
    busy.dec()
    assert seen(folder, "omnibus_num_requests_running", pipeline="p", stage="0") == 1.0
    busy.set(7.0)
    assert seen(folder, "omnibus_num_requests_running", pipeline="p", stage="0") == 7.0


def test_others_are_read_when_a_process_removes_the_file_of_its_gauges_in_the_same_moment(
    folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = start()
    metrics.redriven.labels("p").inc()
    metrics.busy_slots.labels("p", "0").inc()
    listed = Path.glob

    def removed_behind(self: Path, pattern: str) -> Iterator[Path]:
        found = [*listed(self, pattern)]
        for path in found:
            if path.name.startswith("gauge"):
                path.unlink()
        return iter(found)

    monkeypatch.setattr(Path, "glob", removed_behind)
    assert seen(folder, "omnibus_requests_redriven_total", pipeline="p") == 1.0
    assert seen(folder, "omnibus_num_requests_running", pipeline="p", stage="0") is None
