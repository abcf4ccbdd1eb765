"""A comparison on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from quant_experts.client import ComparedJob, ComparisonView
from quant_experts.commands.display.dates import to_the_minute
from quant_experts.commands.display.printable import printable
from quant_experts.commands.display.table import print_rows, stdout_console
from quant_experts.planning.number_text import size_text

UNKNOWN = "–"
BEST = "★"
SCORES = (("multiple_choice", "choice"), ("exact_match", "exact"), ("edit_similarity", "similar"))
NARROWEST, WIDE = 80, 120
"""Columns from which there is room for the ids of the jobs as well."""


def table_of(comparison: ComparisonView, *, width: int) -> Table:
    """A row per candidate, in their order; what nothing beats is marked. It fits ``width`` columns, 80 or more."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("candidate", overflow="fold")
    table.add_column("status", no_wrap=True)
    scores = scores_of(comparison)
    for title in ("KL", "same token", *(title for _, title in scores), "bits", "size", "seconds"):
        table.add_column(title, no_wrap=True, justify="right")
    with_verdicts = any(job.verdict for job in comparison.jobs)
    for title in (["verdict"] if with_verdicts else []) + (["job"] if width >= WIDE else []):
        table.add_column(title, no_wrap=True)
    for job in comparison.jobs:
        ids = [job.job_id] if width >= WIDE else []
        table.add_row(*_cells(job, scores=scores, with_verdicts=with_verdicts), *ids)
    return table


def scores_of(comparison: ComparisonView) -> list[tuple[str, str]]:
    """Name and title of the score of the evaluation that is shown: choices where the rows have them."""
    known = {name for job in comparison.jobs for name in job.scores or {}}
    return [next(pair for pair in SCORES if pair[0] in known)] if known else []


def print_table(comparison: ComparisonView) -> None:
    console = stdout_console()
    console.width = max(console.width, NARROWEST)
    console.print(table_of(comparison, width=console.width))
    labels = {job.job_id: job.label for job in comparison.jobs}
    if comparison.frontier:
        best = ", ".join(labels[job_id] for job_id in comparison.frontier)
        console.print(f"{BEST} nothing is as small and closer, smallest first: {printable(best)}", soft_wrap=True)


def print_list(comparisons: Sequence[ComparisonView]) -> None:
    rows = []
    for each in comparisons:
        ends = sum(job.status in ("succeeded", "failed", "cancelled") for job in each.jobs)
        creation = to_the_minute(each.created_at)
        rows.append((each.id, f"{ends} of {len(each.jobs)}", each.model.id, each.name or "", creation))
    print_rows(("comparison", "ended", "model", "name", "created"), rows)


def _cells(job: ComparedJob, *, scores: Sequence[tuple[str, str]], with_verdicts: bool) -> list[str]:
    return [
        BEST if job.frontier else "",
        printable(job.label),
        job.status,
        UNKNOWN if job.kl is None else f"{job.kl:.4g}",
        UNKNOWN if job.top1_agreement is None else f"{job.top1_agreement:.1%}",
        *(UNKNOWN if (value := (job.scores or {}).get(name)) is None else f"{value:.1%}" for name, _ in scores),
        UNKNOWN if job.effective_bits is None else f"{job.effective_bits:.2f}",
        UNKNOWN if job.bytes_after is None else size_text(job.bytes_after),
        UNKNOWN if job.seconds is None else f"{job.seconds:.0f}",
        *([job.verdict or UNKNOWN] if with_verdicts else []),
    ]
