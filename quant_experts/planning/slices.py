"""Which groups of a block are observed together.

What is observed of a group is a matrix of width × width (method.md, section 3). Of the experts of a large mixture these
take more memory than the rest of the walk, so that experts are observed and fitted some at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

MOMENTS = 4 << 30
"""Bytes of the second moments of a mixture's experts that are in memory together. One more slice is one more forward of
the block."""


class Observed(Protocol):
    """A group of the walk or of a plan."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def width(self) -> int: ...
    @property
    def of_mixture(self) -> bool: ...


G = TypeVar("G", bound=Observed)


def moment_bytes(group: Observed) -> int:
    """Of the second moment, float32."""
    return 4 * group.width**2


def slices_of(groups: Sequence[G]) -> list[list[G]]:
    """All groups of a block in their order; or, where the moments of its experts need more than MOMENTS, as many
    experts at a time as fit, the other groups with the first of them. Both matrices of an expert are in one slice."""
    experts: dict[str, list[G]] = {}
    for group in groups:
        if group.of_mixture:
            experts.setdefault(_expert(group), []).append(group)
    if sum(moment_bytes(group) for members in experts.values() for group in members) <= MOMENTS:
        return [list(groups)]
    parts, room = [[group for group in groups if not group.of_mixture]], MOMENTS
    for number, members in enumerate(experts.values()):
        needed = sum(map(moment_bytes, members))
        if needed > room and number:
            parts.append([])
            room = MOMENTS
        parts[-1] += members
        room -= needed
    return parts


def _expert(group: Observed) -> str:
    return f"{group.name.removesuffix(group.label)}{group.layers[0].rpartition('.')[2]}"
