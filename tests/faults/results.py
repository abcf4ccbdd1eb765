"""benchmarks/results/faults.md from the figures of the parts of a long run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tests.faults import neighbours
from tests.faults.invariants import MEANING

Figures = Mapping[str, Any]
NAMES = {
    "storm": "storm",
    "neighbours": "neighbours",
    "real": "killed real runs",
    "matrix": "kill matrix",
    "recovery": "recovery",
    "recovery-longer": "recovery, longer leases",
}


def page(parts: Mapping[str, Figures]) -> str:
    sections = [
        _head(parts),
        *(section(parts[name]) for name, section in SECTIONS.items() if name in parts),
        _recovery([parts[name] for name in ("recovery", "recovery-longer") if name in parts]),
        *([_controls(parts["controls"])] if "controls" in parts else []),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(parts: Mapping[str, Figures]) -> str:
    shown = [name for name in NAMES if name in parts]
    counts = {name: Counter(re.findall(r"^I\d+", "\n".join(parts[name]["violations"]), re.M)) for name in shown}
    rows = [
        [f"{number}", meaning, *(str(counts[name][number]) for name in shown)] for number, meaning in MEANING.items()
    ]
    return (
        "# Faults against invariants\n\n"
        "`make faults` prints every fault with its seed and writes this page; [docs/faults.md](../../docs/faults.md)"
        " says what is injected and what is checked. Violations:\n\n"
        + _table(["", "invariant", *(NAMES[name] for name in shown)], rows)
    )


def _storm(figures: Figures) -> str:
    rows = [[name, str(count)] for name, count in figures["faults"].items()]
    outcomes = ", ".join(f"{count} {name}" for name, count in figures["outcomes"].items())
    return (
        f"## Storm, seed {figures['seed']}\n\n"
        f"{figures['jobs']} jobs, {figures['succeeded']} succeeded; {figures['disturbed']} needed more than one attempt"
        f" ({figures['attempts']} attempts, at most {figures['most_attempts']} for one job: {outcomes}). Creations"
        f" answered 2xx: {figures['answered_creations']}. {figures['kills']} SIGKILLs,"
        f" {figures['database_outages']} database outages, {figures['broker_outages']} broker outages in"
        f" {figures['seconds']} s. Recorded blocks that an attempt with progress computed again:"
        f" {figures['computed_again']}.\n\n" + _table(["fault", "times"], rows)
    )


def _neighbours(figures: Figures) -> str:
    counts = Counter(line[:2] for line in figures["violations"])
    rows = [[number, meaning, str(counts[number])] for number, meaning in neighbours.MEANING.items()]
    faults = ", ".join(f"{name} {count}" for name, count in figures["faults"].items())
    deleted = ", ".join(f"{count} {kind}s" for kind, count in figures["deleted"].items())
    return (
        f"## Storm among neighbours, seed {figures['seed']}\n\n"
        "A tenant that floods, a sick worker, an old worker, runners that stall, things that are deleted as jobs end,"
        f" two keepers. {figures['jobs']} jobs of both tenants, {figures['succeeded']} succeeded; {figures['attempts']}"
        f" attempts, {figures['old_attempts']} of them by the old worker."
        f" {figures['kills']} SIGKILLs, {figures['stalls']} runners stalled, {deleted} deleted,"
        f" {figures['messages']} webhook messages in {figures['seconds']} s. Claims: {figures['claims']['default']} of"
        f" the quiet tenant, {figures['claims'].get('loud', 0)} of the loud one. Faults: {faults}.\n\n"
        + _table(["", "what must hold besides", "violations"], rows)
    )


def _real(figures: Figures) -> str:
    rows = [[name, str(count)] for name, count in figures["kills"].items()]
    return (
        f"## Killed runs of the real library, seed {figures['seed']}\n\n"
        f"A Qwen2-VL of two blocks, {figures['runs']} runs of the same job, {figures['killed_runs']} of them killed"
        f" at least once ({figures['attempts']} attempts, {figures['seconds']} s). Every checkpoint of"
        f" {figures['files_per_run']} files was compared with the undisturbed run's: all but the reports, which tell"
        f" the time that a run took, must be the same bytes.\n\n" + _table(["kill", "times"], rows)
    )


def _matrix(figures: Figures) -> str:
    victims = list(next(iter(figures["killed"].values())))
    rows = [
        [f"`{point}`", *("x" if row[victim] else "" for victim in victims)] for point, row in figures["killed"].items()
    ]
    return (
        f"## Kill matrix, seed {figures['seed']}\n\n"
        f"{figures['kills']} SIGKILLs over {figures['jobs']} jobs in {figures['seconds']} s. An empty field: no such"
        " process has to do with the point.\n\n" + _table(["crash point", *victims], rows)
    )


def _recovery(parts: Iterable[Figures]) -> str:
    rows = [
        [
            f"{f['lease']:g} / {f['beat']:g} / {f['grace']:g} / {f['keeper_interval']:g}",
            f"{f['kills']}",
            f"{f['median']:.2f}",
            f"{f['worst']:.2f}",
            f"{f['lease'] + f['grace'] + f['keeper_interval']:.2f}",
            f"{f['most_blocks_computed_again']}",
        ]
        for f in parts
    ]
    if not rows:
        return ""
    head = ["lease / beat / grace / keeper, s", "kills", "median, s", "worst, s", "lease + grace + keeper, s", "blocks"]
    return (
        "## Recovery\n\n"
        "SIGKILL of a Celery worker in the middle of a block of one second, until a runner on another worker computes"
        " that block again; beyond the sum in the fifth column come the wake-up, the claim and the start of a process."
        " Last column: the most blocks that were computed again after one kill, the one in hand included.\n\n"
        + _table(head, rows)
    )


def _controls(figures: Figures) -> str:
    rows = [[name, "<br>".join(lines) or "no violation"] for name, lines in figures["found"].items()]
    return "## Negative controls\n\n" + _table(["what was done", "what the checker said"], rows)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(_line(row) for row in (head, ["---"] * len(head), *rows))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


SECTIONS = {"storm": _storm, "neighbours": _neighbours, "real": _real, "matrix": _matrix}
