"""What ``scheme: "auto"`` tried: size against KL, the target, and the point that was chosen."""

from __future__ import annotations

from dataclasses import dataclass

from quant_experts.charts.axes import logarithmic
from quant_experts.charts.frontier import SizeAxis, staircase
from quant_experts.report.charts import numbers
from quant_experts.report.data import AutoSearch, FrontierPoint

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 300, 72, 24, 16, 46


@dataclass(frozen=True)
class Place:
    x: float
    y: float
    point: FrontierPoint
    best: bool
    """Nothing tried is both smaller and closer to full precision."""
    label: str


@dataclass(frozen=True)
class Frontier:
    places: list[Place]
    staircase: str
    """Points of an SVG polyline through the best ones."""
    target_x: float | None
    target_y: float | None
    gridlines: list[tuple[float, str]]
    ticks: list[tuple[float, str]]
    axis_y: float = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP


def frontier_chart(search: AutoSearch) -> Frontier | None:
    """None when nothing was tried."""
    if not search.points:
        return None
    max_bytes, max_kl = search.target.get("max_bytes"), search.target.get("max_kl")
    sizes = [float(point.bytes) for point in search.points] + ([max_bytes] if max_bytes else [])
    x = SizeAxis.of(sizes, LEFT, WIDTH - RIGHT)
    y = logarithmic([point.kl for point in search.points] + ([max_kl] if max_kl else []), HEIGHT - BOTTOM, TOP)
    places = [
        Place(
            x=x.at(point.bytes),
            y=y.at(point.kl),
            point=point,
            best=not any(other.bytes <= point.bytes and other.kl < point.kl for other in search.points),
            label=f"{point.label}: {numbers.size(point.bytes)}, KL {numbers.number(point.kl)}",
        )
        for point in search.points
    ]
    return Frontier(
        places=places,
        staircase=staircase((place.x, place.y) for place in places if place.best),
        target_x=x.at(max_bytes) if max_bytes else None,
        target_y=y.at(max_kl) if max_kl else None,
        gridlines=[(y.at(value), numbers.number(value, 1)) for value in y.ticks(5)],
        ticks=x.ticks(),
    )
