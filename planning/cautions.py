"""What a job would do that its owner may not want. Nothing here refuses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from planning.recipe import Recipe
from planning.shapes import Shapes
from planning.sizes import Size, size_of
from planning.units import said

RANKS = (32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Caution:
    """``code``: for programs; ``pointer``: JSON pointer into the body of a job, or empty."""

    code: str
    message: str
    pointer: str = ""


def cautions_of(shapes: Shapes, recipe: Recipe, size: Size) -> tuple[Caution, ...]:
    return tuple(_larger(shapes, recipe, size))


def _larger(shapes: Shapes, recipe: Recipe, size: Size) -> Iterator[Caution]:
    """Adapters of a fixed rank weigh the more the narrower a model is; of a toy they weigh more than its weights."""
    if size.bytes_after_most <= size.bytes_before:
        return
    would = "would be" if size.bytes_after_least > size.bytes_before else "may be"
    what = (
        f"the checkpoint {would} larger than the model: {said(size.bytes_after_most, 4)} "
        f"after, {said(size.bytes_before, 4)} before"
    )
    found = next(_smaller(shapes, recipe), None)
    if found is None:
        advice = (
            "its experts and adapters weigh more than rounding saves: set reconstruction to none, or keep it"
            if recipe.reconstruction != "none"
            else "so little of it is quantized that rounding saves nothing"
        )
        yield Caution("larger_than_model", f"{what}; {advice}", "")
        return
    changes, after = found
    settings = " and ".join(f"{name} {value}" for name, value in changes.items())
    pointer = f"/options/{next(iter(changes))}"
    yield Caution("larger_than_model", f"{what}; with {settings} it is {said(after, 4)}", pointer)


def _smaller(shapes: Shapes, recipe: Recipe) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Settings with which it is smaller than the model, and its bytes then; those that change the least come first."""
    if recipe.reconstruction == "none":
        return
    names = ("routed_rank", "shared_rank") if recipe.reconstruction == "qe" and recipe.experts else ("shared_rank",)
    for rank in RANKS:
        for dtype in dict.fromkeys((recipe.adapter_dtype, "int8")):
            wanted = {**{name: min(rank, getattr(recipe, name)) for name in names}, "adapter_dtype": dtype}
            changes = {name: value for name, value in wanted.items() if value != getattr(recipe, name)}
            size = size_of(shapes, replace(recipe, **changes))
            if size.bytes_after_most < size.bytes_before:
                yield changes, size.bytes_after_most
