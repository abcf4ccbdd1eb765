"""Slot one: a scale s per input channel, and a rotation behind it. Weights become W diag(s), activations x / s.

A choice is a file with ``smooth(problem) -> Smoothing``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from quant_experts.fit import registry
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.rotation import Rotation


@dataclass(frozen=True)
class Smoothing:
    """``scale``: (d,) float32, positive, or None for no change; with a ``rotation``, of either sign. ``label``: the
    choice with its parameter, for the report."""

    scale: Tensor | None
    label: str
    rotation: Rotation | None = None


class SmoothingChoice(Protocol):
    def smooth(self, problem: GroupProblem) -> Smoothing: ...


def names() -> tuple[str, ...]:
    return registry.names(__name__)


def get(name: str) -> SmoothingChoice:
    """Raises InvalidSpec that lists the choices."""
    return cast(SmoothingChoice, registry.load(__name__, name))


def storable(scale: Tensor) -> Tensor:
    """The scale rounded to bfloat16: any positive scale is a valid one, so it may as well be one that is stored
    exactly."""
    return scale.clamp(2.0**-14, 2.0**14).to(torch.bfloat16).float()
