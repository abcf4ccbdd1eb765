"""Error of each block: after base, shared and routed experts, and of plain rounding; all tokens, and by modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quant_experts.charts.axes import Axis
from quant_experts.charts.error_curves import Curve, Errors, by_stage, error_axis, error_curves, error_gridlines
from quant_experts.report.charts.kinds import axis_label, name_of, tick_label
from quant_experts.report.data import BlockReport, GroupReport, QualityReport, StageErrors

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 280, 62, 12, 14, 40
SMALL_WIDTH, SMALL_HEIGHT = 440, 220

ErrorsOf = Callable[[GroupReport], StageErrors | None]


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
    rounding = _means(report.blocks, lambda group: group.error_rtn)
    series = ({"rtn": rounding} if rounding else {}) | _series(report.blocks, lambda group: group.error)
    return _chart(report.blocks, "All tokens", series, _axis([series], HEIGHT), WIDTH, HEIGHT)


def modality_charts(report: QualityReport) -> list[Chart]:
    """Vision and text on one common axis; empty unless the report has both."""
    by_modality = {
        "Vision tokens": _series(report.blocks, lambda group: group.error_vision),
        "Text tokens": _series(report.blocks, lambda group: group.error_text),
    }
    if not all(by_modality.values()):
        return []
    axis = _axis(list(by_modality.values()), SMALL_HEIGHT)
    return [
        _chart(report.blocks, title, series, axis, SMALL_WIDTH, SMALL_HEIGHT) for title, series in by_modality.items()
    ]


def _chart(
    blocks: Sequence[BlockReport], title: str, series: Mapping[str, Errors], y: Axis, width: int, height: int
) -> Chart:
    step = (width - LEFT - RIGHT) / max(1, len(blocks))

    def x(place: int) -> float:
        return round(LEFT + step * (place + 0.5), 1)

    every = max(1, -(-len(blocks) * 34 // (width - LEFT - RIGHT)))  # a label takes some 34 pixels
    return Chart(
        title=title,
        width=width,
        height=height,
        left=LEFT,
        right=RIGHT,
        curves=error_curves(series, x, y, lambda place: name_of(blocks[place])),
        gridlines=error_gridlines(y),
        ticks=[(x(place), tick_label(blocks[place])) for place in range(0, len(blocks), every)],
        axis_y=height - BOTTOM,
        x_label=axis_label(block.stack for block in blocks),
    )


def _axis(charts: Sequence[Mapping[str, Errors]], height: int) -> Axis:
    return error_axis([errors for series in charts for errors in series.values()], height - BOTTOM, TOP)


def _series(blocks: Sequence[BlockReport], errors_of: ErrorsOf) -> dict[str, Errors]:
    """Stage → mean over the groups of each block."""
    return by_stage(
        _means(blocks, lambda group: errors.base if (errors := errors_of(group)) else None),
        _means(blocks, lambda group: errors.shared if (errors := errors_of(group)) else None),
        _means(blocks, lambda group: errors.routed if (errors := errors_of(group)) else None),
    )


def _means(blocks: Sequence[BlockReport], error: Callable[[GroupReport], float | None]) -> Errors:
    means = {}
    for place, block in enumerate(blocks):
        values = [value for group in block.groups if (value := error(group)) is not None]
        if values:
            means[place] = sum(values) / len(values)
    return means
