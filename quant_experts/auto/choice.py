"""Which points of the grid are worth trying for a target, and which one to take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from quant_experts.auto.grid import Point
from quant_experts.errors import InvalidSpec

TRIES_PER_SCHEME = 2
"""Within a size: of each scheme the largest points that fit. What is smaller at the same bits can repair less."""

TRIES_FROM_THE_TOP = 3
"""Within a KL: so many of the largest points must fail before the target counts as out of reach. One alone may miss it
by chance."""

KlOf = Callable[[Point], float]
"""Tries a point; asking twice is free."""


def best_within_bytes(points: Sequence[Point], max_bytes: int, kl_of: KlOf) -> Point:
    """The point of the lowest KL among those tried; of equals the smallest. ``points``: smallest first.

    Raises InvalidSpec, before anything is tried, when not even the smallest fits.
    """
    candidates = worth_trying(points, max_bytes)
    if not candidates:
        smallest = points[0]
        raise InvalidSpec(
            f'scheme "auto": target.max_bytes {max_bytes:,} cannot be met: the smallest configuration, '
            f"{smallest.label}, takes {smallest.bytes:,} bytes, {smallest.bytes / max_bytes - 1:.1%} more"
        )
    return min(candidates, key=lambda point: (kl_of(point), point.bytes))


def worth_trying(points: Sequence[Point], max_bytes: int) -> list[Point]:
    """Of each scheme the largest points that fit, largest first."""
    worth = []
    of_scheme: Counter[str] = Counter()
    for point in reversed(points):
        if point.bytes <= max_bytes and of_scheme[point.spec.scheme] < TRIES_PER_SCHEME:
            of_scheme[point.spec.scheme] += 1
            worth.append(point)
    return worth


def smallest_within_kl(points: Sequence[Point], max_kl: float, kl_of: KlOf) -> Point:
    """The smallest point seen with at most this KL, found by bisection: KL falls with size, all but for small steps.

    ``points``: smallest first. Raises InvalidSpec saying how close the best one came.
    """
    top = points[-TRIES_FROM_THE_TOP:]
    passing = next((point for point in reversed(top) if kl_of(point) <= max_kl), None)
    if passing is None:
        best = min(top, key=kl_of)
        raise InvalidSpec(
            f'scheme "auto": target.max_kl {max_kl:g} cannot be met: the best configuration, {best.label}, has a KL of '
            f"{kl_of(best):.3g} nats per token on the rows of the search, with {best.bytes:,} bytes"
        )
    low, high = -1, points.index(passing)
    while high - low > 1:
        middle = (low + high) // 2
        if kl_of(points[middle]) <= max_kl:
            high = middle
        else:
            low = middle
    return points[high]
