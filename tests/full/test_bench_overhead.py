"""The bench that needs vLLM, at its smallest size: both servers answer its client, and every figure is there."""

from __future__ import annotations

import pytest

from bench.rows import ROWS
from tests.integration.test_benches import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_line_of_json_has_every_figure_of_the_rows_when_vllm_is_asked_beside_us() -> None:
    line = run("overhead", "--widths", "1,8,32", limit=380)
    assert not line["missing"]
    assert {row.figure for row in ROWS if row.bench == "overhead"} <= set(line["figures"])
    assert line["figures"]["vllm.tokens_a_second_8"] > 0
