"""The quality report as one self-contained page: no script, no request, light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from quant_experts.report import GroupReport, QualityReport

WORST_GROUPS = 10
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 880, 260, 58, 30, 12
STAGES = ("base", "shared", "routed")


def render_report(report: QualityReport, recipe: Mapping[str, Any] | None = None) -> str:
    """The HTML text. Everything that came from the outside (model name, warnings, recipe) is escaped."""
    groups = [group for block in report.blocks for group in block.groups]
    return _template().render(
        report=report,
        recipe=_flat(recipe or {}),
        verdict=verdict(report),
        chart=error_chart(report),
        worst=sorted(groups, key=lambda group: group.error.routed, reverse=True)[:WORST_GROUPS],
        groups=groups,
        stages=[(stage, mean_error(groups, stage)) for stage in STAGES],
        usage=_usage,
        within_layers=_within_layers,
        warnings=list(dict.fromkeys([*report.warnings, *(f"{g.name}: {w}" for g in groups for w in g.warnings)])),
        seconds=_seconds_by_phase(report),
    )


def _within_layers(name: str) -> str:
    """``model.language_model.layers.0.mlp.down`` → ``layers.0.mlp.down``: the rest is the same in every row."""
    return name[max(0, name.find("layers.")) :]


def verdict(report: QualityReport) -> str:
    """One sentence: how far the quantized model is from the full-precision one, and what it weighs."""
    quality, size = report.quality, report.size
    change = quality.perplexity_quantized / quality.perplexity_full - 1
    share = size.bytes_after / size.bytes_before
    return (
        f"On held-out rows the quantized model picks the same next token {quality.top1_agreement:.1%} of the time; "
        f"perplexity goes from {quality.perplexity_full:.4g} to {quality.perplexity_quantized:.4g} ({change:+.1%}); "
        f"it takes {share:.0%} of the bytes, {size.effective_bits:.2f} bits per quantized weight."
    )


def mean_error(groups: Sequence[GroupReport], stage: str) -> float:
    """Mean over groups of the relative squared output error after ``stage``."""
    errors: list[float] = [getattr(group.error, stage) for group in groups]
    return sum(errors) / max(1, len(errors))


@dataclass(frozen=True)
class Curve:
    stage: str
    points: str
    """Of an SVG polyline."""
    dots: list[tuple[float, float, str]]
    """x, y, label of each block."""


@dataclass(frozen=True)
class Chart:
    width: int
    height: int
    left: int
    curves: list[Curve]
    gridlines: list[tuple[float, str]]
    """y, label."""
    ticks: list[tuple[float, str]]
    """x, label."""
    axis_y: float


def error_chart(report: QualityReport) -> Chart:
    """Error of each block after base, shared and routed experts on a logarithmic axis."""
    means = {stage: [mean_error(block.groups, stage) for block in report.blocks] for stage in STAGES}
    positive = [value for values in means.values() for value in values if value > 0]
    low = math.floor(math.log10(min(positive, default=1e-3)))
    high = max(low + 1, math.ceil(math.log10(max(positive, default=1.0))))
    bottom = HEIGHT - BOTTOM
    blocks = len(report.blocks)

    def x(i: int) -> float:
        return round(LEFT + (WIDTH - LEFT - 16) * (i + 0.5) / max(1, blocks), 1)

    def y(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return round(bottom - share * (bottom - TOP), 1)

    curves = []
    for stage, values in means.items():
        dots = [
            (x(i), y(value), f"block {report.blocks[i].block}, {stage}: {value:.3%}") for i, value in enumerate(values)
        ]
        curves.append(Curve(stage, " ".join(f"{px},{py}" for px, py, _ in dots), dots))
    step = max(1, blocks // 12)
    ticks = [(x(i), str(report.blocks[i].block)) for i in range(0, blocks, step)]
    gridlines = [(y(10.0**power), f"{100 * 10.0**power:g} %") for power in range(low, high + 1)]
    return Chart(WIDTH, HEIGHT, LEFT, curves, gridlines, ticks, bottom)


def _usage(shares: Sequence[float]) -> list[tuple[float, float, str]]:
    """Bars of expert usage: x, height and label in a 100 by 20 drawing."""
    if not shares:
        return []
    top, step = max(*shares, 1e-9), 100 / len(shares)
    return [
        (round(i * step, 2), round(20 * share / top, 2), f"expert {i}: {share:.1%}") for i, share in enumerate(shares)
    ]


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
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _bytes(value: int) -> str:
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.4g} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "bytes": _bytes}
    return environment.get_template("quality_report.html")
