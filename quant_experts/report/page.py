"""Render the quality report as one self-contained page without scripts or requests, for screens, phones and print.

``charts`` computes what the page says, one file per chart; ``templates`` holds its look. Every figure of the report is
marked with its path and its full value (``charts/figures.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from quant_experts.report.charts import bars, numbers, sentences
from quant_experts.report.charts.advice import Advice, Context, advice, grouped
from quant_experts.report.charts.error_chart import error_chart, modality_charts
from quant_experts.report.charts.figures import Figures
from quant_experts.report.charts.frequency_chart import frequency_panels
from quant_experts.report.charts.frontier_chart import frontier_chart
from quant_experts.report.charts.kinds import short_name
from quant_experts.report.charts.sentences import verdict
from quant_experts.report.charts.usage_chart import usage_chart
from quant_experts.report.charts.warning_list import warning_list
from quant_experts.report.data import GroupReport, QualityReport

__all__ = ["render_report", "verdict"]

WORST_GROUPS = 10
SENSITIVE_GROUPS = 12
OPTION = re.compile(r"(--[a-z0-9-]+ [A-Za-z0-9._]*[A-Za-z0-9]|`[^`]+`)")


@dataclass(frozen=True)
class Row:
    """A group as the page shows it. ``path``: where it stands in the report."""

    path: str
    group: GroupReport
    short: str
    advice: list[Advice]


@dataclass(frozen=True)
class Limit:
    title: str
    allowed: str
    measured: str
    kept: bool


def render_report(report: QualityReport, recipe: Mapping[str, Any] | None = None) -> str:
    """The HTML text. Everything that came from the outside (model name, warnings, recipe) is escaped."""
    rows = _rows(report, recipe or {})
    worst = sorted(rows, key=lambda row: row.group.error.routed, reverse=True)[:WORST_GROUPS]
    return _template().render(
        report=report,
        figure=Figures(report.model_dump(mode="json")),
        recipe=_flat(recipe or {}),
        verdict=verdict(report),
        bought=sentences.bought(report),
        loss_bars=bars.loss_bars(report),
        rtn_bytes=report.size.bytes_after - sentences.added_bytes(report.size),
        limits=_limits(report),
        chart=error_chart(report),
        modalities=modality_charts(report),
        rows=rows,
        worst=worst,
        advised=grouped([(row.short, row.advice) for row in worst]),
        few_tokens=sentences.few_tokens(report.quality),
        frequency=frequency_panels(report),
        usage=usage_chart(report),
        image_ratio=report.images.smallest_ratio if report.images else None,
        sensitive=_most_sensitive(rows),
        frontier=frontier_chart(report.auto) if report.auto else None,
        parts=bars.parts(report.size),
        size_bars=bars.size_bars(report.size),
        words=sentences,
        warnings=warning_list(report),
        seconds=_seconds_by_phase(report),
    )


def _rows(report: QualityReport, recipe: Mapping[str, Any]) -> list[Row]:
    context = Context.of(report, recipe)
    return [
        Row(f"blocks.{i}.groups.{j}", group, short_name(group.name), advice(group, context))
        for i, block in enumerate(report.blocks)
        for j, group in enumerate(block.groups)
    ]


def _most_sensitive(rows: Sequence[Row]) -> list[tuple[Row, dict[str, int]]]:
    """By the change of the output distribution, with the place of each group by each of the three measures."""
    pairs = [(row, row.group.sensitivity) for row in rows if row.group.sensitivity is not None]
    order = {
        name: [row.path for row, measures in sorted(pairs, key=lambda pair: getattr(pair[1], name), reverse=True)]
        for name in ("kl", "mean_abs", "variance")
    }
    by_path = {row.path: row for row, _ in pairs}
    return [
        (by_path[path], {name: paths.index(path) + 1 for name, paths in order.items()})
        for path in order["kl"][:SENSITIVE_GROUPS]
    ]


def _limits(report: QualityReport) -> list[Limit]:
    if report.acceptance is None:
        return []
    limits = []
    for name, limit in report.acceptance.limits.items():
        value = sentences.measured(report, name)
        form = numbers.number if name in ("max_kl", "min_image_sensitivity") else numbers.percent
        is_kept = value is not None and (value >= limit if name.startswith("min_") else value <= limit)
        limits.append(
            Limit(
                sentences.LIMITS.get(name, name),
                f"{limit:g}" if form is numbers.number else form(limit),
                form(value),
                is_kept,
            )
        )
    return limits


def _seconds_by_phase(report: QualityReport) -> dict[str, float]:
    total: dict[str, float] = {}
    for block in report.blocks:
        for phase, seconds in block.seconds_by_phase.items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _options_as_code(sentence: str) -> Markup:
    """Mark options such as ``--experts 4``, and text in backticks, as code that does not break over lines."""
    parts = OPTION.split(sentence)
    code = Markup("<code class='option'>{}</code>")
    pieces = [code.format(part.strip("`")) if i % 2 else escape(part) for i, part in enumerate(parts)]
    return Markup("").join(pieces)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": numbers.number,
        "percent": numbers.percent,
        "size": numbers.size,
        "count": numbers.count,
        "bits": numbers.bits,
        "change": numbers.change,
        "short_name": short_name,
        "options_as_code": _options_as_code,
    }
    return environment.get_template("quality_report.html")
