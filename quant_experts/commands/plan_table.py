"""A plan in sentences, the same whether it was made here or by a service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quant_experts.planning.units import said


@dataclass(frozen=True)
class Kind:
    """Layers that are quantized together. ``stack``: what to print above the first of one, None for a single stack."""

    stack: str | None
    label: str
    layers: Sequence[str]
    width: int
    outs: Sequence[int]


@dataclass(frozen=True)
class Left:
    """Layers that stay as they are."""

    name: str
    layers: int
    weights: int
    reason: str


@dataclass(frozen=True)
class Placed:
    """The run on one kind of device: bytes and seconds."""

    device: str
    on_device: int
    host: int
    phase: str
    least: float
    likely: float
    most: float


@dataclass(frozen=True)
class Tokens:
    """Of a row. ``counted``: by the model's tokenizer; ``off_by``: the factor by which they may be off."""

    a_row: float
    counted: bool
    off_by: float


@dataclass(frozen=True)
class Told:
    """``after`` and ``bits``: at most, unless ``exact``."""

    model: str
    blocks: int
    weights: int
    quantized: Sequence[Kind]
    skipped: Sequence[Left]
    exact: bool
    before: int
    after: int
    bits: float
    tokens: Tokens
    placements: Sequence[Placed]
    disk: int


def sentences(told: Told) -> Iterator[str]:
    yield f"{told.model}: {told.blocks} blocks, {_count(told.weights)} weights to quantize"
    stack: str | None = None
    for kind in told.quantized:
        if kind.stack != stack:
            stack = kind.stack
            yield f" {stack}:"
        yield f"  {kind.label}: {', '.join(kind.layers)}  {kind.width} → {' + '.join(map(str, kind.outs))}"
    yield "stays as it is:"
    for left in told.skipped:
        yield f"  {left.name} ({left.layers} layers, {left.weights / 1e6:.1f} M weights): {left.reason}"
    at_most = "" if told.exact else "at most "
    yield (
        f"bytes: {said(told.before, 4)} before, {at_most}{said(told.after, 4)} after "
        f"({at_most}{told.bits:.3f} bits per quantized weight)"
    )
    how = "counted by the model's tokenizer" if told.tokens.counted else "estimated"
    yield f"tokens of a row: {told.tokens.a_row:.0f}, {how}, right within a factor of {told.tokens.off_by:.2f}"
    for placed in told.placements:
        on_device = f"{said(placed.on_device)} on the GPU, " if placed.on_device else ""
        yield (
            f"on {placed.device}: peak {on_device}{said(placed.host)} of memory ({placed.phase}); "
            f"{minutes(placed.likely)}, between {minutes(placed.least)} and {minutes(placed.most)}"
        )
    yield f"disk: {said(told.disk)}"


def _count(weights: int) -> str:
    return f"{weights / 1e9:.3f} billion" if weights >= 1e8 else f"{weights:,}"


def warning(message: str) -> str:
    return f"warning: {message}"


def refusal(code: str, message: str) -> str:
    return f"refused: {code}: {message}"


def stack_title(stack: str, blocks: int | None) -> str:
    """``blocks``: of the stack; None for what lies behind them."""
    return f"behind the {stack} blocks" if blocks is None else f"{stack}, {blocks} blocks"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
