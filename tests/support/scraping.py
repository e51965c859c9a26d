"""What a scraper of metrics sees."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

_SHOWN = re.compile(r'(http://\S+?/metrics)"')


class Scrape:
    """One answer of `/metrics`, parsed as Prometheus would."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    @classmethod
    def of(cls, url: str) -> Scrape:
        """What `url` answers now."""
        answer = httpx.get(url, timeout=20.0)
        answer.raise_for_status()
        return cls(answer.text)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels; 0 without any."""
        return sum(one.value for one in self.samples if one.name == name and one.labels.items() >= labels.items())

    def values_of(self, label: str) -> set[str]:
        """All values of a label."""
        return {one.labels[label] for one in self.samples if label in one.labels}


def shown_at(log: Path) -> str:
    """Where a command says that it shows its metrics; empty while it does not yet."""
    found = _SHOWN.search(log.read_text()) if log.exists() else None
    return found[1] if found is not None else ""


def promtool(*words: str, stdin: str = "") -> str:
    """The output of `promtool WORDS`, of Debian's package `prometheus`; fails the test where it finds a fault."""
    try:
        done = subprocess.run(
            ["promtool", *words], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
    except FileNotFoundError:
        raise AssertionError("promtool is missing: apt-get install prometheus") from None
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
