"""Bytes of the checkpoint, exact: what ``quant_experts`` stores of a group does not depend on what it fits.

The one exception is a group so small or so dull that fewer channels than experts ever matter; it then stores less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from quant_experts.planning.blocks import Group
from quant_experts.planning.headers import ITEM_BYTES
from quant_experts.planning.recipe import AUTO, Recipe
from quant_experts.planning.shapes import Shapes
from quant_experts.spec.methods import MOST_WEIGHT_BITS
from quant_experts.spec.ranks import SHAPE_BITS, SMOOTH_BITS, Ranks, adapter_bits

LEAST_WEIGHT_BITS = 2
"""Weight bits that a search may end at."""


@dataclass(frozen=True)
class Size:
    """Bytes of all tensors; bits per quantized weight, adapters included. ``least`` and ``most`` are the same unless
    what is measured during the run decides how many bits some groups get."""

    bytes_before: int
    bytes_after_least: int
    bytes_after_most: int
    bits_least: float
    bits_most: float
    blocks_before: tuple[int, ...]
    blocks_after: tuple[int, ...]
    """At most."""

    @property
    def is_exact(self) -> bool:
        return self.bytes_after_least == self.bytes_after_most


def size_of(shapes: Shapes, recipe: Recipe) -> Size:
    least = {
        group.name: group_bits(group, recipe, weight_bits(group, recipe, most=False), shapes) for group in shapes.groups
    }
    most = {
        group.name: group_bits(group, recipe, weight_bits(group, recipe, most=True), shapes) for group in shapes.groups
    }
    others = shapes.others + sum(block.other_bytes for block in shapes.blocks)
    bits_least, bits_most = sum(least.values()), _bounded(sum(most.values()), sum(least.values()), shapes, recipe)
    return Size(
        bytes_before=shapes.bytes_before,
        bytes_after_least=others + bits_least // 8,
        bytes_after_most=others + bits_most // 8,
        bits_least=bits_least / shapes.weights,
        bits_most=bits_most / shapes.weights,
        blocks_before=tuple(block.before for block in shapes.blocks),
        blocks_after=tuple(
            block.other_bytes + sum(most[group.name] for group in block.groups) // 8 for block in shapes.blocks
        ),
    )


def _bounded(most: int, least: int, shapes: Shapes, recipe: Recipe) -> int:
    """What a budget or a share of the weights leaves of the case that every group gets the most bits."""
    if recipe.budget is not None:
        return max(least, min(most, int(recipe.budget["bits_per_weight"] * shapes.weights)))
    if recipe.sensitive is not None and recipe.sensitive.get("share") is not None:
        largest = max(group.weights for group in shapes.groups)
        bound = max(recipe.sensitive["share"] * shapes.weights, largest)
        return min(most, least + int((most - least) * min(1.0, bound / shapes.weights)) + 8 * len(shapes.groups))
    return most


def weight_bits(group: Group, recipe: Recipe, *, most: bool) -> int:
    """Of this group's weights, at most or at least."""
    if recipe.scheme == AUTO:
        return MOST_WEIGHT_BITS if most else LEAST_WEIGHT_BITS
    base = recipe.bits[0]
    if recipe.budget is not None:
        return MOST_WEIGHT_BITS if most else base
    if recipe.sensitive is not None:
        sensitive_bits = int(recipe.sensitive.get("weight_bits", MOST_WEIGHT_BITS))
        names = recipe.sensitive.get("groups")
        if names is None:
            return sensitive_bits if most else base
        return sensitive_bits if is_named(group, names) else base
    return base


def is_named(group: Group, names: Iterable[str]) -> bool:
    """A name is a group's full name or its end."""
    return any(group.name == name or group.name.endswith(f".{name}") for name in names)


def group_bits(group: Group, recipe: Recipe, bits: int, shapes: Shapes) -> int:
    """Integers, scales, shapes, smoothing, adapters and router; biases do not count."""
    words = -(-group.width * bits // 32)
    scales = group.width // recipe.group_size_for(group.width)
    base = (
        group.rows * (32 * words + scales * recipe.scale_bits(ITEM_BYTES[shapes.dtype]))
        + len(group.layers) * SHAPE_BITS
    )
    smooth = 0 if recipe.smoothing == "none" else group.width * SMOOTH_BITS
    ranks, int8 = ranks_in(group, recipe), recipe.adapter_dtype == "int8"
    return base + smooth + adapter_bits(group.rows, group.width, ranks, int8=int8)


def ranks_in(group: Group, recipe: Recipe) -> Ranks:
    """Ranks and routed experts: no more than there are channels left when the most important ones are taken."""
    own = recipe.for_group(of_mixture=group.of_mixture)
    ranks = own.ranks_for(rows=group.rows, width=group.width, layers=len(group.layers))
    width = group.width - min(recipe.important_channels, max(group.width // 2, 1))
    count = min(ranks.experts, width)
    return replace(ranks, experts=count if count >= 2 else min(ranks.experts, 1))


def export_bytes(name: str, shapes: Shapes, size: Size) -> int:
    """Of the tensors of an export, at most: those of the original model, or those of the checkpoint."""
    return shapes.bytes_before if name == "dequantized" else size.bytes_after_most
