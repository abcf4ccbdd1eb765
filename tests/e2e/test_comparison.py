"""``qe compare`` through a real worker: the table is what the jobs' own reports and files say."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from quant_experts.client import Comparison, Job
from quant_experts.planning.number_text import size_text
from tests.e2e.conftest import Site

pytestmark = pytest.mark.slow
CANDIDATES = ["W4A6", "eight:W8A8/rtn"]
OPTIONS = {"group-size": 32, "shared-rank": 4, "routed-rank": 4, "experts": 2, "important-channels": 4, "samples": 8}


@dataclass(frozen=True)
class Compared:
    comparison: Comparison
    jobs: list[Job]
    reports: list[dict[str, Any]]
    table: list[str]
    """The lines on stdout."""
    said: str
    """What stood on stderr meanwhile."""


@pytest.fixture(scope="module")
def compared(site: Site) -> Compared:
    api = site.service.api
    inputs = ["--model", "local/tiny", "--calibration", str(site.rows), "--accept-max-kl", "100", "--name", "e2e"]
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    qe = subprocess.run(
        [sys.executable, "-m", "quant_experts.cli", "compare", *CANDIDATES, *inputs, *options],
        env={**os.environ, "QE_URL": site.service.url, "QE_API_KEY": api.access.api_key},
        capture_output=True,
        text=True,
        check=False,
    )
    assert qe.returncode == 0, qe.stderr
    comparison = next(entry for entry in api.comparisons.list() if entry.name == "e2e")
    jobs = [api.jobs.get(entry.job_id) for entry in comparison.jobs]
    return Compared(comparison, jobs, [job.report() for job in jobs], qe.stdout.splitlines(), qe.stderr)


def test_every_figure_of_the_table_is_that_of_the_jobs_report(compared: Compared) -> None:
    for entry, job, report in zip(compared.comparison.jobs, compared.jobs, compared.reports, strict=True):
        assert (entry.status, entry.verdict, job.comparison_id) == ("succeeded", "accepted", compared.comparison.id)
        assert (entry.scheme, entry.method) == (report["scheme"], job.method)
        assert entry.kl == report["quality"]["kl"] > 0
        assert entry.top1_agreement == report["quality"]["top1_agreement"]
        assert entry.bytes_after == report["size"]["bytes_after"]
        assert entry.effective_bits == report["size"]["effective_bits"]
    learned, eight = compared.comparison.jobs
    assert (eight.kl or 0) < (learned.kl or 0)


def test_the_frontier_holds_what_no_other_job_beats(compared: Compared) -> None:
    figures = {
        job.id: (report["size"]["bytes_after"], report["quality"]["kl"])
        for job, report in zip(compared.jobs, compared.reports, strict=True)
    }
    unbeaten = [
        job_id
        for job_id, (size, kl) in figures.items()
        if all(
            other_size > size or other_kl > kl for other, (other_size, other_kl) in figures.items() if other != job_id
        )
    ]
    assert compared.comparison.frontier == sorted(unbeaten, key=lambda job_id: figures[job_id])
    assert [entry.job_id for entry in compared.comparison.jobs if entry.frontier] == [
        job.id for job in compared.jobs if job.id in unbeaten
    ]


def test_what_is_printed_is_what_the_service_says(compared: Compared) -> None:
    lines = compared.table[1:3]
    for line, entry in zip(lines, compared.comparison.jobs, strict=True):
        assert line.startswith("★") == entry.frontier
        assert entry.kl is not None
        assert entry.bytes_after is not None
        words = [entry.label, "succeeded", f"{entry.kl:.4g}", size_text(entry.bytes_after), entry.job_id]
        places = [line.find(word) for word in words]
        assert -1 not in places
        assert places == sorted(places)
    steps = [line for line in compared.said.splitlines() if " · " in line]
    assert (
        steps.index("W4A6 balanced · queued")
        < steps.index("W4A6 balanced · succeeded")
        < steps.index("eight · succeeded")
    )
