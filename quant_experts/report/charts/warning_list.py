"""The warnings of a run as one list, for the report's page, the card, the command line and the API."""

from __future__ import annotations

from collections.abc import Sequence

from quant_experts.planning.alike import and_more, kind_of
from quant_experts.report.charts.kinds import short_name
from quant_experts.report.data import QualityReport

NAMED_GROUPS = 3


def warning_list(report: QualityReport) -> list[str]:
    """Each kind of warning once, in order of appearance, with its input groups or with how many are like it."""
    about: dict[str, list[str]] = {}
    warnings = [*report.warnings, *(report.calibration.reasons if report.calibration else [])]
    for warning in dict.fromkeys(warnings):
        about.setdefault(warning, [])
    for group in (group for block in report.blocks for group in block.groups):
        prefix = f"{group.name}: "
        of_group = [*group.warnings, *(w for w in report.warnings if w.startswith(prefix))]
        for warning in dict.fromkeys(w.removeprefix(prefix) for w in of_group):
            about.pop(prefix + warning, None)
            about.setdefault(warning, []).append(short_name(group.name))
    kinds: dict[str, list[str]] = {}
    for warning in about:
        kinds.setdefault(kind_of(warning), []).append(warning)
    return [_line(alike, [name for warning in alike for name in about[warning]]) for alike in kinds.values()]


def _line(alike: Sequence[str], groups: Sequence[str]) -> str:
    """``alike``: the same sentence, with other numbers."""
    if groups:
        few = ", ".join(dict.fromkeys(groups[:NAMED_GROUPS]))
        more = len(groups) - NAMED_GROUPS
        names = few if more <= 0 else f"{few} and {more} more input groups"
        return f"{names}: {alike[0]}"
    return and_more(alike[0], len(alike))
