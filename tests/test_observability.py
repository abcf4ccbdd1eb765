"""Dashboard, alert rules and scrape configuration, checked as data: what they name, the code has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from app.web.telemetry import Telemetry
from worker import metrics

FILES = Path(__file__).parent.parent / "observability"
DASHBOARD: dict[str, Any] = json.loads((FILES / "grafana.json").read_text())
RULES = [rule for group in yaml.safe_load((FILES / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
TESTS = "alerts_test.yml"
RULE_TESTS: list[dict[str, Any]] = yaml.safe_load((FILES / TESTS).read_text())["tests"]
ASKED_FOR = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def series(*registries: CollectorRegistry) -> set[str]:
    """Every name under which a metric of these can be asked for."""
    families = [family for registry in registries for family in registry.collect()]
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


KNOWN = series(Telemetry().registry, metrics.REGISTRY)


@pytest.mark.parametrize("expression", [*ASKED_FOR, *(rule["expr"] for rule in RULES)])
def test_every_metric_that_is_asked_for_exists(expression: str) -> None:
    named = set(re.findall(r"\b(?:qe_[a-z0-9_]+|up)\b", expression))
    assert named
    assert named - {"up"} <= KNOWN


def test_every_metric_is_shown_somewhere() -> None:
    text = " ".join([*ASKED_FOR, *(rule["expr"] for rule in RULES)])
    unseen = {name for name in KNOWN if not name.endswith(("_bucket", "_sum", "_count")) and name not in text}
    assert unseen == set()


def test_the_page_on_metrics_names_each_of_them_and_no_other() -> None:
    page = (FILES.parent / "docs" / "observability.md").read_text()
    named = set(re.findall(r"`(qe_[a-z_]+)`", page))
    exported = {name for name in KNOWN if not name.endswith(("_bucket", "_sum", "_count"))}
    exported |= {name.removesuffix("_bucket") for name in KNOWN if name.endswith("_bucket")}
    assert named == exported


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= set(DASHBOARD)
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) >= 10
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"


def test_every_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 8
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_every_alert_has_a_test_that_sees_it_fire_and_one_that_does_not() -> None:
    asked = [each for test in RULE_TESTS for each in test["alert_rule_test"]]
    assert {each["alertname"] for each in asked if each.get("exp_alerts")} == {rule["alert"] for rule in RULES}
    assert {each["alertname"] for each in asked if not each.get("exp_alerts")} == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize(
    "command", [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", TESTS]]
)
def test_prometheus_takes_the_rules_and_they_fire(command: list[str]) -> None:
    promtool = os.environ.get("QE_PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed; QE_PROMTOOL may name it")
    done = subprocess.run([promtool, *command], cwd=FILES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
