"""Bars for two comparisons: the loss against rounding alone, and the bytes against the full-precision model."""

from __future__ import annotations

from dataclasses import dataclass

from quant_experts.report.charts import numbers
from quant_experts.report.charts.sentences import added_bytes
from quant_experts.report.data import QualityReport, Size

LOSS_WIDTH, SIZE_WIDTH = 350, 600


@dataclass(frozen=True)
class Bar:
    """``start`` and ``length`` in the drawing's own pixels."""

    kind: str
    title: str
    start: float
    length: float
    text: str


def loss_bars(report: QualityReport) -> list[Bar]:
    """KL of rounding alone and of this checkpoint; empty without a baseline or without a loss."""
    if report.baseline is None:
        return []
    figures = {"rtn": ("rounding alone", report.baseline.kl), "routed": (report.method, report.quality.kl)}
    largest = max(kl for _, kl in figures.values())
    if largest <= 0:
        return []
    return [
        Bar(kind, title, 0, round(LOSS_WIDTH * max(0.0, kl) / largest, 1), numbers.number(kl))
        for kind, (title, kl) in figures.items()
    ]


@dataclass(frozen=True)
class Part:
    """A share of the checkpoint's bytes."""

    kind: str
    title: str
    bytes: int


def parts(size: Size) -> list[Part]:
    """What the bytes after are made of; they sum to ``bytes_after`` but for rounding to whole bytes."""
    base = round(size.base_bits * size.quantized_weights / 8)
    adapters = added_bytes(size)
    return [
        Part("shared", "integers and scales", base),
        Part("routed", "experts, routers, smoothing", adapters),
        Part("rest", "not quantized", max(0, size.bytes_after - base - adapters)),
    ]


def size_bars(size: Size) -> list[Bar]:
    """The parts of the checkpoint side by side, relative to the larger of before and after."""
    largest = max(size.bytes_before, size.bytes_after, 1)
    bars, start = [], 0.0
    for part in parts(size):
        length = round(SIZE_WIDTH * part.bytes / largest, 1)
        bars.append(Bar(part.kind, part.title, round(start, 1), length, numbers.size(part.bytes)))
        start += length
    return bars
