"""The problem that the three slots solve together for one input group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant_experts.fit.experts.partition import Partition
from quant_experts.fit.statistics import Observation
from quant_experts.spec.ranks import Ranks
from quant_experts.spec.specification import QuantizationSpec


@dataclass(frozen=True)
class ModalityWeights:
    """How much an output error matters on tokens of each modality: mean absolute gradient of the loss, any unit."""

    vision: float = 1.0
    text: float = 1.0


EQUAL_WEIGHTS = ModalityWeights()


@dataclass(frozen=True)
class GroupProblem:
    """Weights and inputs of one group, possibly rescaled: W diag(s) and x / s.

    ``weight``: (out, d) float32, the group's layers stacked. ``second_moment``: (d, d) float32, a sum over ``tokens``.
    ``mean_abs``, ``max_abs``: (d,). ``samples``: (R, d) float32, the reservoir. ``important``: (R, d) bool, the
    important channels of each reservoir token, which do not change with the scale because |x_c| w_c does not.
    ``ranks``, ``group_size``: resolved; the size divides d. ``vision``: (R,) bool, the reservoir's image tokens.
    ``modality_weights``: what an error on a vision and on a text token counts; equal unless the method measures them.
    """

    name: str
    weight: Tensor
    tokens: int
    second_moment: Tensor
    mean_abs: Tensor
    max_abs: Tensor
    samples: Tensor
    important: Tensor
    partition: Partition
    spec: QuantizationSpec
    ranks: Ranks
    group_size: int
    scale_dtype: torch.dtype
    vision: Tensor
    modality_weights: ModalityWeights

    @classmethod
    def of(
        cls,
        weight: Tensor,
        observation: Observation,
        important: Tensor,
        partition: Partition,
        spec: QuantizationSpec,
        ranks: Ranks,
        group_size: int,
        scale_dtype: torch.dtype,
        modality_weights: ModalityWeights,
    ) -> GroupProblem:
        return cls(
            name=observation.name,
            weight=weight,
            tokens=observation.tokens,
            second_moment=observation.second_moment,
            mean_abs=observation.mean_abs,
            max_abs=observation.max_abs,
            samples=observation.tokens_kept,
            important=important,
            partition=partition,
            spec=spec,
            ranks=ranks,
            group_size=group_size,
            scale_dtype=scale_dtype,
            vision=observation.kept_vision,
            modality_weights=modality_weights,
        )

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def scaled(self, scale: Tensor | None) -> GroupProblem:
        """The same problem for W diag(s) and x / s. scale: (d,) positive, or None for no change."""
        if scale is None:
            return self
        return replace(
            self,
            weight=self.weight * scale,
            second_moment=(self.second_moment / scale).div_(scale.unsqueeze(-1)),  # gigabytes: one copy, not two
            mean_abs=self.mean_abs / scale,
            max_abs=self.max_abs / scale,
            samples=self.samples / scale,
        )
