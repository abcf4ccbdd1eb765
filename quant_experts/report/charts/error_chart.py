"""Error of each block: after base, shared and routed experts, and of plain rounding; all tokens, and by modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quant_experts.report.charts.axes import Axis, logarithmic
from quant_experts.report.charts.kinds import axis_label, block_label, tick_label
from quant_experts.report.charts.numbers import percent
from quant_experts.report.data import BlockReport, GroupReport, QualityReport, StageErrors

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 280, 62, 12, 14, 40
SMALL_WIDTH, SMALL_HEIGHT = 440, 220
STAGES = ("base", "shared", "routed")
TITLES = {
    "rtn": "rounding alone (RTN)",
    "base": "base alone",
    "shared": "+ shared expert",
    "routed": "+ routed experts",
    "error": "quantized",
}

Errors = Callable[[GroupReport], StageErrors | None]


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    block: int
    value: float
    label: str


@dataclass(frozen=True)
class Curve:
    stage: str
    title: str
    points: str
    """Of an SVG polyline."""
    dots: list[Dot]
    mean: float
    """Over all groups of the model."""


@dataclass(frozen=True)
class Chart:
    title: str
    width: int
    height: int
    left: int
    right: int
    curves: list[Curve]
    gridlines: list[tuple[float, str]]
    """y, label."""
    ticks: list[tuple[float, str]]
    """x, label."""
    axis_y: float
    x_label: str


def error_chart(report: QualityReport) -> Chart:
    """All tokens: the mean over a block's groups after each stage, and of rounding to nearest where it was measured."""
    return _chart(report.blocks, "All tokens", lambda group: group.error, WIDTH, HEIGHT)


def modality_charts(report: QualityReport) -> list[Chart]:
    """Vision and text on one common axis; empty unless the report has both."""
    by_modality: list[tuple[str, Errors]] = [
        ("Vision tokens", lambda group: group.error_vision),
        ("Text tokens", lambda group: group.error_text),
    ]
    series = [_series(report.blocks, errors, with_rounding=False) for _, errors in by_modality]
    if not all(series):
        return []
    axis = _error_axis([values for curves in series for values in curves.values()], SMALL_HEIGHT)
    return [
        _chart(report.blocks, title, errors, SMALL_WIDTH, SMALL_HEIGHT, axis=axis, with_rounding=False)
        for title, errors in by_modality
    ]


def _chart(
    blocks: Sequence[BlockReport],
    title: str,
    errors: Errors,
    width: int,
    height: int,
    *,
    axis: Axis | None = None,
    with_rounding: bool = True,
) -> Chart:
    series = _series(blocks, errors, with_rounding=with_rounding)
    y = axis or _error_axis(list(series.values()), height)
    step = (width - LEFT - RIGHT) / max(1, len(blocks))

    def x(i: int) -> float:
        return round(LEFT + step * (i + 0.5), 1)

    curves = []
    for stage, values in series.items():
        dots = [
            Dot(
                x(i),
                y.at(value),
                blocks[i].block,
                value,
                f"block {block_label(blocks[i])}, {TITLES[stage]}: {percent(value)}",
            )
            for i, value in values.items()
        ]
        curves.append(
            Curve(
                stage=stage,
                title=TITLES[stage],
                points=" ".join(f"{dot.x},{dot.y}" for dot in dots),
                dots=dots,
                mean=sum(dot.value for dot in dots) / len(dots),
            )
        )
    every = max(1, -(-len(blocks) * 34 // (width - LEFT - RIGHT)))  # a label takes some 34 pixels
    return Chart(
        title=title,
        width=width,
        height=height,
        left=LEFT,
        right=RIGHT,
        curves=curves,
        gridlines=[(y.at(value), percent_tick(value)) for value in y.ticks()],
        ticks=[(x(i), tick_label(blocks[i])) for i in range(0, len(blocks), every)],
        axis_y=height - BOTTOM,
        x_label=axis_label(block.stack for block in blocks),
    )


def percent_tick(value: float) -> str:
    return f"{100 * value:.12g} %"


def _error_axis(series: Sequence[dict[int, float]], height: int) -> Axis:
    return logarithmic((value for values in series for value in values.values()), height - BOTTOM, TOP)


def _series(blocks: Sequence[BlockReport], errors: Errors, *, with_rounding: bool) -> dict[str, dict[int, float]]:
    """Stage → block's place → mean over its groups. A stage that the method does not have is left out."""
    series: dict[str, dict[int, float]] = {}
    if with_rounding:
        series["rtn"] = _means(blocks, lambda group: group.error_rtn)
    base, shared, routed = (_means(blocks, _after(errors, stage)) for stage in STAGES)
    if base == shared == routed:
        series["error"] = routed
    else:
        series["base"] = base
        series |= {"shared": shared} if shared != base else {}
        series |= {"routed": routed} if routed != shared else {}
    return {stage: means for stage, means in series.items() if means}


def _after(errors: Errors, stage: str) -> Callable[[GroupReport], float | None]:
    return lambda group: getattr(errors(group), stage, None)


def _means(blocks: Sequence[BlockReport], error: Callable[[GroupReport], float | None]) -> dict[int, float]:
    means = {}
    for i, block in enumerate(blocks):
        values = [value for group in block.groups if (value := error(group)) is not None]
        if values:
            means[i] = sum(values) / len(values)
    return means
