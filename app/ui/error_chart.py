"""The error chart of a job's finished blocks as coordinates of an SVG.

Without a chart library: it works without scripts, and screen readers and text search find its labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.jobs.queries import BlockErrors
from quant_experts.charts.error_curves import Curve, Errors, by_stage, error_axis, error_curves, error_gridlines
from quant_experts.planning.block_names import block_name

WIDTH, HEIGHT = 600, 250
LEFT, RIGHT, TOP, BOTTOM = 84, 12, 12, 44
MOST_TICKS = 12


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
    series = by_stage(*(_errors(blocks, stage) for stage in ("base", "shared", "routed")))
    if not series:
        return None
    last = max(total or 0, blocks[-1].block + 1) - 1
    y = error_axis(list(series.values()), HEIGHT - BOTTOM, TOP)
    names = {block.block: block_name(block.block, block.stack, block.index, block.part) for block in blocks}

    def x(block: int) -> float:
        return round(LEFT + 12 + (WIDTH - LEFT - RIGHT - 24) * (block / last if last else 0.5), 1)

    ticks = range(0, last + 1, math.ceil((last + 1) / MOST_TICKS))
    curves = error_curves(series, x, y, names.__getitem__)
    return Chart(curves, error_gridlines(y), [(x(block), block) for block in ticks], _axis(blocks))


def _errors(blocks: Sequence[BlockErrors], stage: str) -> Errors:
    return {block.block: block.errors[stage] for block in blocks if stage in block.errors}


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
