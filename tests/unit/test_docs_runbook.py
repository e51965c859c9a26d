"""The runbook has an entry for each alert, and what it says rehearses an entry exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from omnibus.observability.events import LogEvent
from omnibus.observability.metrics import Metrics
from tests.chaos.nemeses.table import NEMESES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "operate.md"
RUNBOOK = PAGE.read_text()
URL = "https://github.com/omnibus-serve/omnibus/blob/main/docs/guide/operate.md#"
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
ENTRIES = re.findall(r"^### (.+)\n((?:(?!^#{2,3} ).*\n?)*)", RUNBOOK, re.MULTILINE)
TESTS = re.findall(r"`([\w/]+\.py)::(\w+)`", RUNBOOK)
NAMED_NEMESES = {
    name
    for names in re.findall(r"nemes[ie]s ((?:`[\w-]+`(?:, )?)+)", RUNBOOK)
    for name in re.findall(r"`(.+?)`", names)
}


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_alert_has_an_entry_and_leads_there(rule: dict[str, object]) -> None:
    alert = str(rule["alert"])
    assert alert in dict(ENTRIES), f"docs/guide/operate.md has no entry {alert}"
    annotations = rule["annotations"]
    assert isinstance(annotations, dict)
    assert annotations.get("runbook_url") == f"{URL}{alert.lower()}"


def test_every_entry_named_like_an_alert_is_one() -> None:
    assert {title for title, _ in ENTRIES if title.startswith("Omnibus")} == {str(rule["alert"]) for rule in RULES}


@pytest.mark.parametrize(("title", "entry"), ENTRIES, ids=[title for title, _ in ENTRIES])
def test_entry_says_what_rehearses_it(title: str, entry: str) -> None:
    (line,) = re.findall(r"^- \*\*Rehearsed by\*\*: (.+)$", entry, re.MULTILINE)
    assert re.search(r"nemes[ie]s `|\.py::", line), title


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)}


def test_named_nemeses_exist() -> None:
    assert len(NAMED_NEMESES) > 15
    assert {nemesis.name for nemesis in NEMESES} >= NAMED_NEMESES


def test_named_events_and_metrics_exist() -> None:
    """What an operator is asked to look for, in the runbook and in the alerts: words like `lease.lost`, and series."""
    registry = CollectorRegistry()
    Metrics(registry)
    metrics = {f"{one.name}{'_total' if one.type == 'counter' else ''}" for one in registry.collect()}
    assert set(re.findall(r"omnibus_\w+", RUNBOOK)) <= metrics
    kinds = {event.partition(".")[0] for event in LogEvent} - {"stage"}
    described = RUNBOOK + " ".join(str(rule["annotations"]) for rule in RULES)
    named = {word for word in re.findall(r"\b[a-z]+\.[a-z_]+\b", described) if word.partition(".")[0] in kinds}
    assert len(named) > 5
    assert named - set(LogEvent) == set()
