"""Which expert the router sends how many tokens to: one heat map per kind of group, a column per block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quant_experts.report.charts.kinds import axis_label, by_kind, name_of, tick_label
from quant_experts.report.charts.numbers import percent
from quant_experts.report.data import BlockReport, GroupReport, QualityReport

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 430, 30, 4, 4, 36
ROW = (5, 14)
"""Least and greatest height of a row in pixels; between them, as many experts as there are share the height."""
HEIGHT = 112
TITLED = 2000
"""Cells. More would make the page heavy with labels that nobody hovers over."""


@dataclass(frozen=True)
class Cell:
    x: float
    y: float
    shade: float
    """0 to 1: the share, relative to the largest of the whole model."""
    share: float
    label: str | None


@dataclass(frozen=True)
class Heat:
    kind: str
    cells: list[Cell]
    step: float
    row: float
    experts: int
    ticks: list[tuple[float, str]]
    """x, block."""
    labels: list[tuple[float, str]]
    """y, expert."""
    height: float
    x_label: str
    width: int = WIDTH
    left: int = LEFT


@dataclass(frozen=True)
class Usage:
    heats: list[Heat]
    largest: float
    """Share of the fullest cell: full shade."""
    even: float | None
    """Share of each expert if all were used alike; None when groups differ in their number."""


def usage_chart(report: QualityReport) -> Usage | None:
    """None when no group has a router."""
    kinds = {kind: [g for g in groups if g.expert_usage] for kind, groups in by_kind(report).items()}
    kinds = {kind: groups for kind, groups in kinds.items() if groups}
    shares = [share for groups in kinds.values() for group in groups for share in group.expert_usage]
    if not shares:
        return None
    is_small = len(shares) <= TITLED
    blocks = {block.block: block for block in report.blocks}
    largest = max(*shares, 1e-9)
    sizes = {len(group.expert_usage) for groups in kinds.values() for group in groups}
    return Usage(
        heats=[_heat(kind, groups, blocks, largest, is_small=is_small) for kind, groups in kinds.items()],
        largest=largest,
        even=1 / sizes.pop() if len(sizes) == 1 else None,
    )


def _heat(
    kind: str,
    groups: list[GroupReport],
    blocks: Mapping[int, BlockReport],
    largest: float,
    *,
    is_small: bool,
) -> Heat:
    """``blocks``: by their number."""
    experts = max(len(group.expert_usage) for group in groups)
    row = round(min(max(HEIGHT / experts, ROW[0]), ROW[1]), 2)
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    cells = [
        Cell(
            x=round(LEFT + column * step, 2),
            y=round(TOP + expert * row, 2),
            shade=round(share / largest, 3),
            share=share,
            label=f"{name_of(blocks[group.block])}, expert {expert}: {percent(share)}" if is_small else None,
        )
        for column, group in enumerate(groups)
        for expert, share in enumerate(group.expert_usage)
    ]
    columns = [blocks[group.block] for group in groups]
    every = max(1, round(34 / step + 0.49))
    per_label = max(1, -(-13 // int(row)))
    return Heat(
        kind=kind,
        cells=cells,
        step=round(step, 2),
        row=row,
        experts=experts,
        ticks=[(round(LEFT + (i + 0.5) * step, 1), tick_label(columns[i])) for i in range(0, len(columns), every)],
        labels=[(round(TOP + (i + 0.5) * row, 1), str(i)) for i in range(0, experts, per_label)],
        height=TOP + experts * row + BOTTOM,
        x_label=axis_label(block.stack for block in columns),
    )
