"""The problem that the three slots solve together for one input group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant_experts.fit.experts.partition import Partition
from quant_experts.fit.quantizer import round_tokens
from quant_experts.fit.rotation import Rotation
from quant_experts.fit.statistics import Observation
from quant_experts.forward.modeling_quant_experts import rotate
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
    ``rotation``: of what the base reads; weights and inputs here are those before it, which the experts read.
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
    rotation: Rotation | None = None

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
        """The same problem for W diag(s) and x / s. scale: (d,) not zero, or None for no change."""
        if scale is None:
            return self
        return replace(
            self,
            weight=self.weight * scale,
            second_moment=(self.second_moment / scale).div_(scale.unsqueeze(-1)),  # gigabytes: one copy, not two
            mean_abs=self.mean_abs / scale.abs(),
            max_abs=self.max_abs / scale.abs(),
            samples=self.samples / scale,
        )

    def rotated_by(self, rotation: Rotation | None) -> GroupProblem:
        """The same problem whose base is rounded behind ``rotation``."""
        return replace(self, rotation=rotation)

    def of_the_base(self) -> GroupProblem:
        """The problem whose weights are rounded: weights and moment rotated. Tokens and their magnitudes stay, because
        no rounding reads them."""
        if self.rotation is None:
            return self
        sizes = self.rotation.sizes
        moment = rotate(rotate(self.second_moment, sizes).T.contiguous(), sizes)
        return replace(self, weight=rotate(self.weight, sizes), second_moment=moment, rotation=None)

    def rounded(self, x: Tensor) -> Tensor:
        """What the base reads of scaled inputs x, (n, d), in the coordinates of x: ``T Q(T x)``."""
        bits = self.spec.bits.activation_bits
        if self.rotation is None:
            return round_tokens(x, bits)
        return rotate(round_tokens(rotate(x, self.rotation.sizes), bits, self.rotation.clip), self.rotation.sizes)
