"""Slot two: weights to integers.

A choice is a file with ``round_weights(problem, exempt) -> Rounded``, and with ``check(width, name)`` if there are
widths that it refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from quant_experts.fit import registry
from quant_experts.fit.problem import GroupProblem


@dataclass(frozen=True)
class Rounded:
    """``codes``: (out, d) int8; ``scales``: (out, d/g) float32 with values that the stored dtype represents exactly."""

    codes: Tensor
    scales: Tensor


class RoundingChoice(Protocol):
    def round_weights(self, problem: GroupProblem, exempt: Tensor) -> Rounded:
        """Round the problem's (scaled) weights. exempt: (d,) bool, columns whose integers must all be zero."""
        ...


def names() -> tuple[str, ...]:
    return registry.names(__name__)


def get(name: str) -> RoundingChoice:
    """Raises InvalidSpec that lists the choices."""
    return cast(RoundingChoice, registry.load(__name__, name))


def check(choice: str, width: int, name: str) -> None:
    """Ask a choice whether it takes on an input group of this width, before anything runs.

    Raises InvalidSpec naming the group when it does not, and for a choice that is not known.
    """
    refuse = getattr(get(choice), "check", None)
    if refuse is not None:
        refuse(width, name)
