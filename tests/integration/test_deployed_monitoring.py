"""The rules for Prometheus and the dashboard for Grafana in deploy/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from omnibus.observability.metrics import Metrics
from tests.support.scraping import promtool

pytestmark = pytest.mark.integration
DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS, TESTS = DEPLOY / "prometheus" / "alerts.yaml", DEPLOY / "prometheus" / "alerts_test.yaml"
DASHBOARD = DEPLOY / "grafana" / "omnibus.json"
_NAMES = re.compile(r"\b(?:omnibus_\w+|vllm:\w+)")
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def names() -> set[str]:
    """The names of all series that our processes can have."""
    registry = CollectorRegistry()
    Metrics(registry)
    return {f"{family.name}{suffix}" for family in registry.collect() for suffix in _SUFFIXES[family.type]}


def expressions() -> Iterator[str]:
    """What the dashboard asks for, as Grafana sends it."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m").replace("$pipeline", ".*")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"label_values\((\w+), \w+\)", r"\1", variable["query"])


def test_alerts_fire_when_their_failure_is_rehearsed_and_not_before() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(TESTS))
    fired = {
        one["alertname"]
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for one in test["alert_rule_test"]
        if one.get("exp_alerts")
    }
    assert fired == {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}


def test_rules_and_dashboard_ask_only_for_metrics_that_exist() -> None:
    asked = [*expressions(), *(rule["expr"] for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])]
    found = {name for one in asked for name in _NAMES.findall(one)}
    assert {name for name in found if name.startswith("omnibus_")} <= names()
    found_vllm = find_spec("vllm")
    assert found_vllm is not None
    vllm = Path(str(found_vllm.origin)).parent / "v1" / "metrics" / "loggers.py"
    known = set(re.findall(r"vllm:\w+", vllm.read_text()))
    assert {name.removesuffix("_bucket") for name in found if name.startswith("vllm:")} <= known


def test_dashboard_asks_in_valid_promql(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(expressions())]
    file = tmp_path / "dashboard.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))
