"""Slot three: what is added to the rounded weights, in full precision and low rank.

A choice is a file with two functions: ``exempt_columns(problem)``, (d,) bool, the input channels that it carries as a
whole and that are zero in the base; and ``reconstruct(problem, base)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from quant_experts.fit import registry
from quant_experts.fit.problem import GroupProblem


@dataclass(frozen=True)
class Adapters:
    """Low-rank corrections of the stacked group, on the scaled input, float32. None where the method has no such part.

    ``shared_up``: (out, r_s); ``shared_down``: (r_s, d); ``routed_up``: (N, out, r_r); ``routed_down``: (N, r_r, d);
    ``router``: (N, d).
    """

    shared_up: Tensor | None = None
    shared_down: Tensor | None = None
    routed_up: Tensor | None = None
    routed_down: Tensor | None = None
    router: Tensor | None = None
    warnings: tuple[str, ...] = ()


class ReconstructionChoice(Protocol):
    def exempt_columns(self, problem: GroupProblem) -> Tensor: ...

    def reconstruct(self, problem: GroupProblem, base: Tensor) -> Adapters:
        """base: (out, d) float32, the dequantized integers, on the scaled input."""
        ...


def names() -> tuple[str, ...]:
    return registry.names(__name__)


def get(name: str) -> ReconstructionChoice:
    """Raises InvalidSpec that lists the choices."""
    return cast(ReconstructionChoice, registry.load(__name__, name))


def no_columns(problem: GroupProblem) -> Tensor:
    return torch.zeros(problem.width, dtype=torch.bool, device=problem.weight.device)


def clamped_rank(problem: GroupProblem, rank: int, option: str) -> tuple[int, tuple[str, ...]]:
    """The rank that the layer allows, with a warning when it is less than asked for."""
    largest = min(problem.weight.shape)
    if rank <= largest:
        return rank, ()
    return largest, (f"{option} {rank} is larger than the layers of {problem.name} allow; clamped to {largest}",)
