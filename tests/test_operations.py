"""The runbook quotes log lines, metrics, events and codes: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.web.problems import CATALOGUE
from app.web.telemetry import Telemetry
from core.contract.errors import FailureCode
from core.contract.events import EventType
from core.ledger.states import AttemptOutcome
from worker import metrics

ROOT = Path(__file__).parent.parent
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()
FILES = [path for package in ("app", "core", "worker") for path in (ROOT / package).rglob("*.py")]
FILES += [ROOT / "migrations" / "env.py", ROOT / "quant_experts" / "model" / "hub.py"]
SOURCES = [" ".join(path.read_text().replace('"\n', "").split()) for path in FILES]


def quoted(before: str) -> list[str]:
    return sorted(set(re.findall(rf"{before} `([^`]+)`", RUNBOOK)))


@pytest.mark.parametrize(
    "fragment", [*quoted("log"), *quoted("reason"), *quoted("message"), "nothing arrived from the hub"]
)
def test_a_quoted_line_is_one_that_a_program_writes(fragment: str) -> None:
    if fragment == "was killed by SIGKILL":  # put together by process.describe_end
        fragment = "was killed by {signal.Signals(-returncode).name}"
    assert any(fragment in source for source in SOURCES), fragment


def test_named_metrics_events_codes_and_problems_exist() -> None:
    registries = (Telemetry().registry, metrics.REGISTRY)
    exported = {metric.name for registry in registries for metric in registry.collect()}
    named = {name.removesuffix("_total") for name in re.findall(r"`(qe_\w+)`", RUNBOOK)}
    assert len(named) >= 5
    assert named <= exported
    for newest in ("qe_worker_leases_lost", "qe_keeper_reaped", "qe_bells_not_rung"):
        assert newest in named
    assert set(quoted("event")) <= {event.value for event in EventType}
    assert set(quoted("attempt")) <= {outcome.value for outcome in AttemptOutcome}
    assert set(quoted("error")) <= {code.value for code in FailureCode}
    assert set(quoted("50[0-9]")) - {"503"} <= set(CATALOGUE)


def test_every_retryable_failure_has_its_line() -> None:
    from core.contract.errors import RETRYABLE

    assert {code.value for code in RETRYABLE} - {"internal"} <= set(re.findall(r"`(\w+)`", RUNBOOK))
