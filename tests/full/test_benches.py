"""Each bench at its smallest size: it runs, and its line of JSON has every figure that its rows name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import document, plots
from bench.all import BENCHES
from bench.rows import ROWS, Row, shorts

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

_FLAGS = {"overhead": ("--widths", "1,8,32")}
RESULTS: dict[str, Any] = {
    "size": "quick",
    "machine": {
        "cores": 2,
        "cpu": "a processor",
        "memory_gib": 8.0,
        "kernel": "6",
        "python": "3.11",
        "packages": {"uvloop": "1"},
    },
    "seconds": 1.0,
    "others_busy_cores": 0.0,
    "figures": {"http": {"omnibus.rate_beside_fastapi": 0.1, "omnibus.p99_ms": 20.0}, "handoff": {}},
    "spread": {"http": {"omnibus.p99_ms": [18.0, 23.0]}},
    "missing": {"handoff": {"tcp.gb_a_second": "no such transport"}},
    "detail": {},
}


@pytest.mark.parametrize("bench", BENCHES)
def test_line_of_json_has_every_figure_of_the_rows_when_a_bench_runs_at_its_smallest(bench: str) -> None:
    line = _run(bench)
    assert line["bench"] == bench
    for row in ROWS:
        if row.bench == bench and row.figure not in line["missing"]:
            assert line["figures"][row.figure] >= 0 or "over" in row.figure, row
    assert all(line["missing"].values()), "a figure is missing without a reason"
    assert set(line["spread"]) <= set(line["figures"])
    assert bench != "overhead" or line["figures"]["vllm.tokens_a_second_8"] > 0


def test_rows_are_named_as_missed_when_a_bound_is_not_reached_or_a_figure_could_not_be_had() -> None:
    found = {short.row: short for short in shorts(RESULTS["figures"], RESULTS["missing"], ["http", "handoff"])}
    assert found["http.omnibus.rate_beside_fastapi"].figure == 0.1
    assert "http.omnibus.p99_ms" not in found
    assert found["handoff.tcp.gb_a_second"].reason == "no such transport"
    assert found["handoff.same_host.gb_a_second"].reason
    assert not any(name.startswith("hops.") for name in found), "it was not run"


@pytest.mark.parametrize(("at", "value", "missed"), [("most", 4.6, True), ("most", 4.5, False), ("least", 4.4, True)])
def test_bound_is_missed_when_the_value_lies_beyond_it(at: Any, value: float, missed: bool) -> None:
    assert Row(bench="b", figure="f", text="t", at=at, bound=4.5).missed_by(value) is missed


def test_table_of_the_page_is_replaced_and_the_text_around_it_stays_when_results_are_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{document.BEGIN}\nold\n{document.END}\nbelow\n")
    document.write(RESULTS, page)
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert "| 20 ms | 18 – 23 | ≤ 50 ms | reached |" in text
    assert "| 0.1× |  | ≥ 0.25× | **missed** |" in text
    assert "no such transport" in text


def test_page_has_the_marks_between_which_its_table_is_written() -> None:
    text = document.PAGE.read_text()
    assert text.index(document.BEGIN) < text.index(document.END)


def test_pictures_are_written_when_benches_have_series(tmp_path: Path) -> None:
    results = {
        "figures": {
            "scaling": {},
            "hops": {},
            "makespan": {"over_bound_1_to_50": 1.1, "model.random": 1.5},
            "failover": {},
        },
        "detail": {
            "scaling": {"detail": {"rates": {"1": 10.0, "2": 19.0}, "ideal": {"1": 10.0, "2": 20.0}}},
            "hops": {"detail": {"cpu_ms": {"direct": {"nats-server": 0.3, "bench": 0.2}, "zeromq": {"zeromq": 0.2}}}},
            "failover": {"detail": {"waits_ms": [10.0, 12.0]}},
        },
    }
    plots.write(results, tmp_path)
    for plot in plots.PLOTS:
        assert (tmp_path / plot.file).read_bytes().startswith(b"\x89PNG")


def _run(bench: str) -> dict[str, Any]:
    """The line of JSON of a bench at its smallest size."""
    ended = subprocess.run(
        (sys.executable, "-m", f"bench.{bench}", "--size", "smallest", *_FLAGS.get(bench, ())),
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    line: dict[str, Any] = json.loads(ended.stdout.rstrip().rpartition("\n")[2])
    return line


def test_flows_end_in_exactly_their_five_figures_and_every_sound_is_right() -> None:
    """Bounds may be missed on a machine that others use; then the exit code is 1."""
    ended = subprocess.run(
        (sys.executable, "-m", "bench.flows", "--rounds", "2", "--times", "1", "--asked", "4", "--width", "2"),
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    line = json.loads(ended.stdout.rstrip().rpartition("\n")[2])
    keys = ["first_audio_chunked", "first_audio_unchunked", "total_chunked", "total_unchunked", "underruns"]
    assert list(line) == keys, ended.stderr
    assert 0 < line["first_audio_chunked"] < line["total_chunked"]
    assert 0 < line["first_audio_unchunked"] < line["total_unchunked"]
    assert not any(word in ended.stderr for word in ("wrong sound", "another")), ended.stderr
