"""An SVG plot of size against KL: a mark per job, and a staircase through the Pareto frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app.comparisons.schemas import ComparedJob, ComparisonView
from quant_experts.charts.axes import Axis, logarithmic
from quant_experts.charts.frontier import SizeAxis, staircase
from quant_experts.planning.number_text import number, size_text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 420, 84, 28, 52, 56
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 } .small { font-size: 12px; fill: #57606a }
  .grid { stroke: #d0d7de; stroke-width: 1 } .frame { fill: none; stroke: #8c959f }
  .original { stroke: #57606a; stroke-dasharray: 5 4 }
  .stairs { fill: none; stroke: #0969da; stroke-width: 2 } .best { fill: #0969da }
  .beaten { fill: #ffffff; stroke: #57606a; stroke-width: 1.5 } .missed { fill: #cf222e; stroke: none }
  .sheet { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #30363d } .sheet { fill: #0d1117 }
    .beaten { fill: #0d1117; stroke: #9198a1 } .original { stroke: #9198a1 } .stairs { stroke: #4493f8 }
    .best { fill: #4493f8 } .missed { fill: #f85149 }
  }
"""


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    row: ComparedJob


def draw(comparison: ComparisonView, *, dressed: bool = True) -> str:
    """An SVG document. Without a succeeded job it is a sentence.

    ``dressed``: with a style sheet inside. Pages whose policy forbids that have the rules in their own style sheet.
    """
    rows = [row for row in comparison.jobs if row.kl is not None and row.bytes_after is not None]
    title = f"{comparison.model.id}: size and KL of {len(comparison.jobs)} candidates"
    body = (
        _chart(rows, comparison.bytes_before)
        if rows
        else [f'<text x="{LEFT}" y="{HEIGHT / 2}">No candidate has succeeded yet.</text>']
    )
    absent = len(comparison.jobs) - len(rows)
    note = f"{absent} of {len(comparison.jobs)} have no figures" if absent and rows else ""
    texts = "; ".join(f"{row.label}: {size_text(row.bytes_after or 0)}, KL {number(row.kl or 0.0)}" for row in rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
            ' aria-labelledby="plot-title plot-what">',
            f'<title id="plot-title">{escape(title)}</title>',
            f'<desc id="plot-what">{escape(texts or "No candidate has succeeded yet.")}</desc>',
            f'<style>{STYLE}</style><rect class="sheet" width="{WIDTH}" height="{HEIGHT}"/>' if dressed else "",
            f'<text x="{LEFT}" y="26">{escape(_shortened(title, 96))}</text>',
            *body,
            f'<text class="small" x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{escape(note)}</text>',
            "</svg>",
            "",
        ]
    )


def _chart(rows: Sequence[ComparedJob], original: int | None) -> list[str]:
    sizes = [float(row.bytes_after or 0) for row in rows] + ([float(original)] if original else [])
    x = SizeAxis.of(sizes, LEFT, WIDTH - RIGHT)
    y = logarithmic([row.kl or 0.0 for row in rows], HEIGHT - BOTTOM, TOP)
    points = [Point(x.at(row.bytes_after or 0), y.at(row.kl or 0.0), row) for row in rows]
    points.sort(key=lambda point: (point.x, point.y))
    best = [(point.x, point.y) for point in points if point.row.frontier]
    return [
        *_axes(x, y),
        *_original(x, original),
        *([f'<polyline class="stairs" points="{staircase(best)}"/>'] if len(best) > 1 else []),
        *_marks(points),
    ]


def _original(x: SizeAxis, size: int | None) -> list[str]:
    """A line at the size of the original model, whose KL of 0 is not on the axis."""
    if not size:
        return []
    at = x.at(size)
    return [
        f'<line class="original" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text class="small" x="{at - 6}" y="{TOP + 16}" text-anchor="end">original, {size_text(size)}</text>',
    ]


def _axes(x: SizeAxis, y: Axis) -> list[str]:
    lines = []
    for at, label in [(y.at(kl), number(kl, 1)) for kl in y.ticks()]:
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        lines.append(f'<text class="small" x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{label}</text>')
    for at, label in x.ticks():
        lines.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        lines.append(f'<text class="small" x="{at}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        *lines,
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>',
        f'<text class="small" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 16}" text-anchor="middle">'
        "size of the tensors</text>",
        f'<text class="small" x="20" y="{middle}" transform="rotate(-90 20 {middle})" text-anchor="middle">'
        "KL to full precision, nats per token</text>",
    ]


def _marks(points: Sequence[Point]) -> list[str]:
    """Each label is on the side with more room, and moves down when it would overlap the one before."""
    lines, last = [], (-1e9, -1e9)
    for point in points:
        kind = "best" if point.row.frontier else "beaten"
        kind = "missed" if point.row.verdict == "rejected" else kind
        description = f"{point.row.label}: {size_text(point.row.bytes_after or 0)}, KL {number(point.row.kl or 0.0)}"
        description += f", {point.row.verdict.value}" if point.row.verdict else ""
        lines.append(
            f'<circle class="{kind}" cx="{point.x}" cy="{point.y}" r="6"><title>{escape(description)}</title></circle>'
        )
        to_the_left = point.x > (LEFT + WIDTH - RIGHT) / 2
        at = point.y - 10
        if abs(point.x - last[0]) < 150 and abs(at - last[1]) < 15:
            at = last[1] + 15
        last = (point.x, at)
        shift, anchor = (-9, "end") if to_the_left else (9, "start")
        label = escape(_shortened(point.row.label, 40))
        lines.append(f'<text x="{point.x + shift}" y="{at}" text-anchor="{anchor}">{label}</text>')
    return lines


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
