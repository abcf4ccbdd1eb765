"""Error by block as curves of an SVG: after base, shared and routed experts, and of plain rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quant_experts.charts.axes import Axis, logarithmic
from quant_experts.planning.number_text import percent

TITLES = {
    "rtn": "rounding alone (RTN)",
    "base": "base alone",
    "shared": "+ shared expert",
    "routed": "+ routed experts",
    "error": "quantized",
}

Errors = Mapping[int, float]
"""Place of a block → its error as a share of one."""


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    place: int
    value: float
    label: str


@dataclass(frozen=True)
class Curve:
    stage: str
    title: str
    errors: Errors
    dots: list[Dot]
    points: str
    """Of an SVG polyline."""

    @property
    def mean(self) -> float:
        """Over all its blocks."""
        return sum(self.errors.values()) / len(self.errors)


def by_stage(base: Errors, shared: Errors, routed: Errors) -> dict[str, Errors]:
    """Stage → errors. A stage that the method does not have is left out: it has the errors of the stage before it."""
    if base == shared == routed:
        return {"error": routed} if routed else {}
    stages = {
        "base": base,
        "shared": shared if shared != base else {},
        "routed": routed if routed != shared else {},
    }
    return {stage: errors for stage, errors in stages.items() if errors}


def error_axis(series: Sequence[Errors], bottom: float, top: float) -> Axis:
    return logarithmic((value for errors in series for value in errors.values()), bottom, top)


def error_curves(
    series: Mapping[str, Errors], x: Callable[[int], float], y: Axis, name: Callable[[int], str]
) -> list[Curve]:
    """A curve for each stage of ``series``. ``x``: coordinate of a place; ``name``: of the block there."""
    curves = []
    for stage, errors in series.items():
        dots = [
            Dot(x(place), y.at(value), place, value, f"{name(place)}, {TITLES[stage]}: {percent(value)}")
            for place, value in errors.items()
        ]
        points = " ".join(f"{dot.x},{dot.y}" for dot in dots)
        curves.append(Curve(stage, TITLES[stage], errors, dots, points))
    return curves


def error_gridlines(y: Axis) -> list[tuple[float, str]]:
    """[(coordinate, label)]"""
    return [(y.at(value), f"{100 * value:.12g} %") for value in y.ticks()]
