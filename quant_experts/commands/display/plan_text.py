"""A plan as text, for plans made here and by a service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quant_experts.planning.number_text import size_text


@dataclass(frozen=True)
class QuantizedLayers:
    """Layers that are quantized together. ``stack``: heading above the first of a stack, None for a single stack."""

    stack: str | None
    label: str
    layers: Sequence[str]
    width: int
    outs: Sequence[int]


@dataclass(frozen=True)
class SkippedLayers:
    """Layers that stay as they are."""

    name: str
    layers: int
    weights: int
    reason: str


@dataclass(frozen=True)
class PlacementText:
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
    """Tokens of a row. ``counted``: by the model's tokenizer. ``off_by``: factor of uncertainty."""

    a_row: float
    counted: bool
    off_by: float


@dataclass(frozen=True)
class PlanText:
    """``after`` and ``bits``: at most, unless ``exact``."""

    model: str
    blocks: int
    weights: int
    quantized: Sequence[QuantizedLayers]
    skipped: Sequence[SkippedLayers]
    exact: bool
    before: int
    after: int
    bits: float
    tokens: Tokens
    placements: Sequence[PlacementText]
    disk: int


def sentences(text: PlanText) -> Iterator[str]:
    yield f"{text.model}: {text.blocks} blocks, {_count(text.weights)} weights to quantize"
    stack: str | None = None
    for kind in text.quantized:
        if kind.stack != stack:
            stack = kind.stack
            yield f" {stack}:"
        yield f"  {kind.label}: {', '.join(kind.layers)}  {kind.width} → {' + '.join(map(str, kind.outs))}"
    yield "stays as it is:"
    for layers in text.skipped:
        yield f"  {layers.name} ({layers.layers} layers, {layers.weights / 1e6:.1f} M weights): {layers.reason}"
    at_most = "" if text.exact else "at most "
    yield (
        f"bytes: {size_text(text.before, 4)} before, {at_most}{size_text(text.after, 4)} after "
        f"({at_most}{text.bits:.3f} bits per quantized weight)"
    )
    how = "counted by the model's tokenizer" if text.tokens.counted else "estimated"
    yield f"tokens of a row: {text.tokens.a_row:.0f}, {how}, right within a factor of {text.tokens.off_by:.2f}"
    for placement in text.placements:
        on_device = f"{size_text(placement.on_device)} on the GPU, " if placement.on_device else ""
        yield (
            f"on {placement.device}: peak {on_device}{size_text(placement.host)} of memory ({placement.phase}); "
            f"{minutes(placement.likely)}, between {minutes(placement.least)} and {minutes(placement.most)}"
        )
    yield f"disk: {size_text(text.disk)}"


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
