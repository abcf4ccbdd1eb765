"""Which points of the grid are worth trying for a target, and which one to take.

One assumption rules out the points that are not tried: a point that is at least as rich as another in each respect
(weight bits, adapters, sensitive groups) has at most the other's KL. Size alone does not decide: eight large experts on
4-bit weights may take more bytes than plain 8-bit weights, and lose more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quant_experts.errors import InvalidSpec
from quant_experts.search.grid import Point

KlOf = Callable[[Point], float]
"""Tries a point and returns its KL. A point is tried once only."""


def best_within_bytes(points: Sequence[Point], max_bytes: int, kl_of: KlOf) -> Point:
    """The point with the lowest KL among those worth trying; the smallest of equals. ``points``: smallest first.

    Raises InvalidSpec, before anything is tried, when not even the smallest fits.
    """
    candidates = worth_trying(points, max_bytes)
    if not candidates:
        smallest = points[0]
        raise InvalidSpec(
            f'scheme "auto": target.max_bytes {max_bytes:,} cannot be met: the smallest configuration, '
            f"{smallest.label}, takes {smallest.bytes:,} bytes, {smallest.bytes - max_bytes:,} more"
        )
    return min(candidates, key=lambda point: (kl_of(point), point.bytes))


def worth_trying(points: Sequence[Point], max_bytes: int) -> list[Point]:
    """The points that fit, except those that are poorer in each respect than another that fits; smallest first.

    The largest point of each scheme that fits stays as well. It cannot win, but it shows what a smaller model loses.
    """
    affordable = [point for point in points if point.bytes <= max_bytes]
    largest = {point.spec.scheme: point.label for point in affordable}
    return [
        point
        for point in affordable
        if largest[point.spec.scheme] == point.label
        or not any(is_richer(other, point) for other in affordable if other.label != point.label)
    ]


def smallest_within_kl(points: Sequence[Point], max_kl: float, kl_of: KlOf) -> Point:
    """The smallest point with at most this KL. ``points``: smallest first.

    It tries the richest first, then the middle of the remaining points again and again. A point that meets the target
    rules out everything larger; one that misses it rules out everything poorer.
    Raises InvalidSpec that says how close the richest came.
    """
    richest = max(points, key=lambda point: point.richness)
    if kl_of(richest) > max_kl:
        raise InvalidSpec(
            f'scheme "auto": target.max_kl {max_kl:g} cannot be met: the richest configuration, {richest.label}, has a '
            f"KL of {kl_of(richest):.3g} nats per token on the rows of the search, and takes {richest.bytes:,} bytes"
        )
    best = richest
    smaller = [point for point in points if point.bytes < best.bytes]
    while smaller:
        middle = smaller[len(smaller) // 2]
        if kl_of(middle) <= max_kl:
            best = middle
            smaller = [point for point in smaller if point.bytes < best.bytes]
        else:
            smaller = [point for point in smaller if not is_richer(middle, point)]
    return best


def is_richer(point: Point, other: Point) -> bool:
    """At least as rich in each respect."""
    return all(mine >= theirs for mine, theirs in zip(point.richness, other.richness, strict=True))
