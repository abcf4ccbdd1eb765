"""The error chart by block as coordinates of an SVG: base, + shared expert, + routed experts, on a logarithmic axis.

Without a chart library: it works without scripts, and screen readers and text search find its labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.jobs.queries import BlockErrors
from app.ui.formats import percent
from quant_experts.planning.block_names import block_name

WIDTH, HEIGHT = 600, 250
LEFT, RIGHT, TOP, BOTTOM = 84, 12, 12, 44
STAGES = {"base": "base alone", "shared": "+ shared expert", "routed": "+ routed experts"}
ALONE = "error"
"""Title of the only curve of a method without experts."""
MOST_TICKS = 12


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Curve:
    stage: str
    title: str
    latest: str
    points: str
    dots: list[Dot]


@dataclass(frozen=True)
class Chart:
    curves: list[Curve]
    gridlines: list[tuple[float, str]]
    """(y, label)"""
    ticks: list[tuple[float, int]]
    """(x, block)"""
    axis: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    floor: int = HEIGHT - BOTTOM


def error_chart(blocks: Sequence[BlockErrors], total: int | None) -> Chart | None:
    """None without data. The horizontal axis covers the whole model from the start."""
    values = [v for block in blocks for v in block.errors.values() if v > 0 and math.isfinite(v)]
    if not values:
        return None
    last = max(total or 0, blocks[-1].block + 1) - 1
    low, high = math.floor(math.log10(min(values)) * 2) / 2, math.ceil(math.log10(max(values)) * 2) / 2
    high = max(high, low + 1)

    def x(block: int) -> float:
        return round(LEFT + 12 + (WIDTH - LEFT - RIGHT - 24) * (block / last if last else 0.5), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(value)) / (high - low), 1)

    curves = []
    own = [stage for stage in STAGES if stage == "routed" or not _same_as_next(blocks, stage)]
    for stage in own:
        title = STAGES[stage] if len(own) > 1 else ALONE
        own_values = [(b, b.errors[stage]) for b in blocks if b.errors.get(stage, 0) > 0]
        if not own_values:
            continue
        dots = [Dot(x(b.block), y(value), f"{_named(b)}, {title}: {percent(value)}") for b, value in own_values]
        points = " ".join(f"{dot.x},{dot.y}" for dot in dots)
        curves.append(Curve(stage, title, percent(own_values[-1][1]), points, dots))
    gridlines = [(y(value), f"{100 * value:g} %") for value in _rungs(low, high)]
    step = math.ceil((last + 1) / MOST_TICKS)
    return Chart(curves, gridlines, [(x(block), block) for block in range(0, last + 1, step)], _axis(blocks))


def _named(block: BlockErrors) -> str:
    return block_name(block.block, block.stack, block.index, block.part)


def _axis(blocks: Sequence[BlockErrors]) -> str:
    """``decoder block``, or which numbers are whose: ``block (vision 0–8, language model 9–12)``."""
    ranges = [
        (stack, [block.block for block in inside])
        for stack, inside in itertools.groupby(blocks, key=lambda block: block.stack)
        if stack is not None
    ]
    if not ranges:
        return "decoder block"
    spans = (f"{stack} {_span(numbers)}" for stack, numbers in ranges)
    return f"block ({', '.join(spans)})"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _rungs(low: float, high: float) -> list[float]:
    """Gridlines: 1, 10, 100 …, and also 3, 30, 300 … on a short axis."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    rungs = [m * 10.0**p for p in powers for m in ((1, 3) if high - low <= 2.5 else (1,))]
    return [rung for rung in rungs if low - 1e-9 <= math.log10(rung) <= high + 1e-9]


def _same_as_next(blocks: Sequence[BlockErrors], stage: str) -> bool:
    """Whether the stage has the same errors as the next one: the method does not have it, and one curve is enough."""
    after = {"base": "shared", "shared": "routed"}[stage]
    return all(block.errors.get(stage) == block.errors.get(after) for block in blocks)
