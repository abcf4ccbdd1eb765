"""What a job would do that its owner may not want. Nothing here refuses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quant_experts.planning.number_text import size_text
from quant_experts.planning.recipe import AUTO, Recipe
from quant_experts.planning.shapes import Shapes
from quant_experts.planning.sizes import Size, size_of
from quant_experts.spec.limits import MOST_ROWS

RANKS = (32, 16, 8, 4, 2, 1)
FEWER_BITS = (6, 4)
MOST_BITS = 8
"""Per quantized weight, adapters included: with more, half of 16 is not saved even of what is quantized."""


ROWS_UNREAD = (
    f"there are more than {MOST_ROWS:,} calibration rows: a run draws its samples from the first {MOST_ROWS:,} and "
    "reads no other; if the order of the rows means something, shuffle them before"
)


@dataclass(frozen=True)
class Caution:
    """``code``: for programs; ``pointer``: JSON pointer into the body of a job, or empty."""

    code: str
    message: str
    pointer: str = ""


def cautions_of(shapes: Shapes, recipe: Recipe, size: Size) -> tuple[Caution, ...]:
    return tuple(_costly(shapes, recipe, size))


def cautions_of_scheme(recipe: Recipe) -> tuple[Caution, ...]:
    """The cautions that hold for every model, where there is no plan: integers of 8 bits and their scales take more
    than 8 bits per weight."""
    if recipe.scheme == AUTO or recipe.bits[0] < MOST_BITS:
        return ()
    fewer = f"W{FEWER_BITS[-1]}A{recipe.bits[1]}"
    what = f"the checkpoint holds more than {MOST_BITS} bits per quantized weight, and saves less than half of 16"
    return (Caution("saves_little", f"{what}; scheme {fewer} about halves it: plan it for its figures", "/scheme"),)


def _costly(shapes: Shapes, recipe: Recipe, size: Size) -> Iterator[Caution]:
    """Adapters of a fixed rank weigh the more the narrower a model is; of a toy they weigh more than its weights."""
    larger = size.bytes_after_most > size.bytes_before
    if not larger and _worth_it(size):
        return
    may = size.bytes_after_least != size.bytes_after_most
    figures = f"{size_text(size.bytes_after_most, 4)} after, {size_text(size.bytes_before, 4)} before"
    if larger:
        would = "may" if size.bytes_after_least <= size.bytes_before else "would"
        what = f"the checkpoint {would} be larger than the model: {figures}"
    elif size.bits_most > MOST_BITS:
        what = (
            f"the checkpoint {'may hold' if may else 'holds'} {size.bits_most:.3g} bits per quantized weight, "
            f"more than {MOST_BITS}: {figures}"
        )
    else:
        what = f"the checkpoint {'may save' if may else 'saves'} less than half: {figures}"
    code = "larger_than_model" if larger else "saves_little"
    alternative = _instead(shapes, recipe, size)
    if alternative is None:
        loss = size_text(size.bytes_after_most - int(size.bits_most * shapes.weights) // 8, 4)
        yield Caution(code, f"{what}; {loss} of it are never quantized, and no other setting saves more", "")
        return
    changes, after = alternative
    settings = " and ".join(f"{name} {value}" for name, value in changes.items())
    pointer = "/scheme" if next(iter(changes)) == "scheme" else f"/options/{next(iter(changes))}"
    bits = f" at {after.bits_most:.3g} bits per quantized weight"
    yield Caution(code, f"{what}; with {settings} it is {size_text(after.bytes_after_most, 4)}{bits}", pointer)


def _worth_it(size: Size) -> bool:
    return size.bits_most <= MOST_BITS and 2 * size.bytes_after_most <= size.bytes_before


def _instead(shapes: Shapes, recipe: Recipe, size: Size) -> tuple[Mapping[str, Any], Size] | None:
    """Settings with which it is worth it, those that change the least first; where there are none, those with which it
    is smallest, if that is smaller. With its size then."""
    smallest: tuple[Mapping[str, Any], Size] | None = None
    for changes in _settings(recipe):
        after = size_of(shapes, replace(recipe, **changes))
        if _worth_it(after):
            return changes, after
        if after.bytes_after_most < (smallest[1] if smallest else size).bytes_after_most:
            smallest = changes, after
    return smallest


def _settings(recipe: Recipe) -> Iterator[Mapping[str, Any]]:
    """Smaller adapters, none, then fewer bits; what is the same already is left out."""
    if recipe.reconstruction != "none":
        has_experts = recipe.reconstruction == "qe" and recipe.experts
        names = ("routed_rank", "shared_rank") if has_experts else ("shared_rank",)
        ranks = {name: value for name in names if isinstance(value := getattr(recipe, name), int)}
        for rank in RANKS:
            for dtype in dict.fromkeys((recipe.adapter_dtype, "int8")):
                alternatives = {**{name: min(rank, value) for name, value in ranks.items()}, "adapter_dtype": dtype}
                changes = {name: value for name, value in alternatives.items() if value != getattr(recipe, name)}
                if changes:
                    yield changes
        yield {"reconstruction": "none"}
    if recipe.scheme == AUTO or recipe.budget is not None:
        return  # what was asked for decides the bits
    weights, activations = recipe.bits
    for bits in (bits for bits in FEWER_BITS if bits < weights):
        yield {"scheme": f"W{bits}A{activations}"}
        if recipe.reconstruction != "none":
            yield {"scheme": f"W{bits}A{activations}", "reconstruction": "none"}
