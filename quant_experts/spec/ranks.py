"""Ranks of a group's experts where nobody named them: the largest that fit into a few bits per weight.

A rank costs as many bytes in a narrow layer as it does in a wide one per row and column, and so several times as much
per weight: ranks of a fixed size are 11 bits per weight at a width of 576 and 1.7 at 3584 (docs/method.md, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

ADAPTER_BITS = 16
SCALE_BITS = 16
SMOOTH_BITS = 32
SHAPE_BITS = 2 * 64
"""Of a layer's ``weight_shape``."""
ROOM = 0.8
"""Bits per weight that scales of weights, smoothing and experts take together beyond the scheme's own."""
COUNTS = (8, 4, 2)
"""Routed experts: the most that leave each a rank of ``LEAST_RANK``, or none."""
LEAST_RANK = 8
"""With less, a router and a scale for each row of every expert take a large part of the room, and one adapter of the
same bytes is closer to full precision (docs/adr/0031, measured)."""
SHARED_TO_ROUTED = 2
"""Rank of the shared expert in those of a routed one."""
MOST_RANK = 1024


class Options(Protocol):
    """What decides the ranks, of the library's spec and of the planner's recipe."""

    @property
    def reconstruction(self) -> str: ...
    @property
    def smoothing(self) -> str: ...
    @property
    def search_rotates(self) -> bool: ...
    @property
    def adapter_dtype(self) -> str: ...
    @property
    def shared_rank(self) -> int | str: ...
    @property
    def routed_rank(self) -> int | str: ...
    @property
    def experts(self) -> int | str: ...

    def group_size_for(self, width: int) -> int: ...


@dataclass(frozen=True)
class Ranks:
    """``routed`` is the rank of each of the ``experts`` routed experts."""

    shared: int
    routed: int
    experts: int


def ranks_of(options: Options, *, rows: int, width: int, layers: int) -> Ranks:
    """As asked for, and in the place of every "auto" the largest that fit. ``rows``: of all ``layers`` together.

    What was asked for is kept where it takes more room than there is; of the rest nothing is left then but one rank of
    each routed expert that was asked for.
    """
    if options.reconstruction == "none":
        return Ranks(0, 0, 0)
    room = int(ROOM * rows * width) - _besides(options, rows, width, layers)

    def fits(ranks: Ranks) -> bool:
        return adapter_bits(rows, width, ranks, int8=options.adapter_dtype == "int8") <= room

    most = min(rows, width, MOST_RANK)
    candidates = (_with_experts(options, experts, most, fits) for experts in _counts(options))
    return next(ranks for ranks in candidates if ranks is not None)


def _with_experts(options: Options, experts: int, most: int, fits: Callable[[Ranks], bool]) -> Ranks | None:
    """None where there is no room for so many that nobody asked for."""
    routed = _routed_rank(options, experts, most, fits)
    if routed == 0 and experts:
        return None
    if isinstance(options.shared_rank, int):
        return Ranks(options.shared_rank, routed, experts)
    return Ranks(_largest(most, lambda rank: fits(Ranks(rank, routed, experts))), routed, experts)


def in_mixture(options: Options) -> dict[str, int | str]:
    """The options that are others in an expert of a mixture: its tokens are routed already, so that one adapter of its
    own takes the whole room."""
    alone = options.reconstruction == "qe" and options.shared_rank == 0
    return {
        "experts": 0,
        "refine": "none",
        "reconstruction": "none" if alone else options.reconstruction,
        # Not searched for each: experts that differ could not share an entry of the configuration.
        "smoothing": "rotation" if options.smoothing == "search" and options.search_rotates else options.smoothing,
    }


def adapter_bits(rows: int, width: int, ranks: Ranks, *, int8: bool) -> int:
    """Stored of shared and routed experts and of the router; ranks beyond what the layers allow count as those."""
    router = ranks.experts * width * ADAPTER_BITS
    shared = _expert_bits(rows, width, ranks.shared, int8=int8)
    return shared + ranks.experts * _expert_bits(rows, width, ranks.routed, int8=int8) + router


def _expert_bits(rows: int, width: int, ranks: int, *, int8: bool) -> int:
    """Up and down of one expert; in int8 each row has a scale."""
    rank = min(ranks, rows, width)
    values = rank * (rows + width)
    return 8 * values + SCALE_BITS * (rows + rank) if int8 and rank else ADAPTER_BITS * values


def _besides(options: Options, rows: int, width: int, layers: int) -> int:
    """Bits of scales, smoothing and shapes."""
    smooth = 0 if options.smoothing == "none" else width * SMOOTH_BITS
    return rows * (width // options.group_size_for(width)) * SCALE_BITS + smooth + layers * SHAPE_BITS


def _counts(options: Options) -> tuple[int, ...]:
    if options.reconstruction != "qe":
        return (0,)
    return (options.experts,) if isinstance(options.experts, int) else (*COUNTS, 0)


def _routed_rank(options: Options, experts: int, most: int, fits: Callable[[Ranks], bool]) -> int:
    """0 where there is no room for what nobody asked for."""
    if experts == 0:
        return 0
    if isinstance(options.routed_rank, int):
        room_for = isinstance(options.experts, int) or fits(Ranks(_shared(options, 1), options.routed_rank, experts))
        return options.routed_rank if room_for else 0
    largest = _largest(most, lambda rank: fits(Ranks(_shared(options, rank), rank, experts)))
    if isinstance(options.experts, int):
        return max(largest, 1)
    return largest if largest >= LEAST_RANK else 0


def _shared(options: Options, routed: int) -> int:
    return options.shared_rank if isinstance(options.shared_rank, int) else SHARED_TO_ROUTED * routed


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest rank up to ``most`` that fits, as all smaller ones do; 0 if none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
