"""How often each channel is important: a head that nearly all tokens share, and a tail that depends on the token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from quant_experts.charts.axes import Axis
from quant_experts.report.charts.kinds import by_kind, short_name
from quant_experts.report.data import ChannelStatistics, GroupReport, QualityReport

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 430, 200, 52, 22, 10, 42
PANELS = 4


@dataclass(frozen=True)
class Panel:
    """``head`` and ``tail`` are x, width of the shaded stretches; a stretch without a channel has no width."""

    group: GroupReport
    channels: ChannelStatistics
    title: str
    points: str
    dots: list[tuple[float, float, int, float]]
    """x, y, rank, share."""
    head: tuple[float, float]
    tail: tuple[float, float]
    gridlines: list[tuple[float, str]]
    ticks: list[tuple[float, str]]
    axis_y: float = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP


def frequency_panels(report: QualityReport) -> list[Panel]:
    """One panel for each of the first four kinds of group of a stack, taken from the middle of the stack."""
    stacks = {block.block: block.stack for block in report.blocks}
    counts: Counter[str | None] = Counter()
    panels = []
    for groups in by_kind(report).values():
        with_curve = [(group, group.channels) for group in groups if group.channels and group.channels.curve]
        if not with_curve:
            continue
        group, channels = with_curve[len(with_curve) // 2]
        counts[stacks[group.block]] += 1
        if counts[stacks[group.block]] <= PANELS:
            panels.append(_panel(group, channels))
    return panels


def _panel(group: GroupReport, channels: ChannelStatistics) -> Panel:
    last = max(point.rank for point in channels.curve)
    x = Axis(1, max(2, last), LEFT, WIDTH - RIGHT, logarithmic=True)
    y = Axis(0, _top(max(point.share for point in channels.curve)), HEIGHT - BOTTOM, TOP)
    dots = [(x.at(point.rank), y.at(point.share), point.rank, point.share) for point in channels.curve]
    # Between ranks: the last channel of the head belongs to it.
    head_end = x.at(channels.independent + 0.5) if channels.independent else LEFT
    dependent_end = channels.independent + channels.dependent
    tail_end = x.at(dependent_end + 0.5) if channels.dependent else head_end
    return Panel(
        group=group,
        channels=channels,
        title=short_name(group.name),
        points=" ".join(f"{px},{py}" for px, py, _, _ in dots),
        dots=dots,
        head=(LEFT, round(head_end - LEFT, 1)),
        tail=(head_end, round(tail_end - head_end, 1)),
        gridlines=[(y.at(value), f"{100 * value:.3g} %") for value in y.ticks(4)],
        ticks=[(x.at(value), f"{value:,.0f}") for value in _ranks(last)],
    )


def _top(share: float) -> float:
    return next((top for top in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if share <= top), 1.0)


def _ranks(last: int) -> list[int]:
    """1, 10, 100 …, and the last channel where it does not crowd the one before."""
    ranks = [10**power for power in range(6) if 10**power <= last]
    return [*ranks, last] if last > 3 * ranks[-1] else ranks
