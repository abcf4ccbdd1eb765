"""The rotation of what the base reads: an orthogonal matrix that spreads outliers over all channels.

``T D / s``, D random signs: QuaRot (Ashkboos et al., NeurIPS 2024, arXiv 2404.00456) with the sizes that any width
allows, and not folded into other layers. D is stored in the sign of s (docs/method.md, section 4, step 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant_experts.seeding import generator

MOST_MIXED = 64
"""Largest order of the factor that is no Hadamard matrix: it costs as many multiplications per channel."""
CLIP = {4: 2.6, 5: 3.0}
"""Activation bits → the root mean squares of a token that its largest integer stands for at most. Rotated channels are
nearly normal, for which these ranges leave the smallest squared error (Max 1960, "Quantizing for minimum distortion").
With 6 bits and more the largest magnitude is about as good."""


@dataclass(frozen=True)
class Rotation:
    """``sizes``: (m, n) for ``rotate``. ``clip``: of the quantizer behind it, in root mean squares, or None."""

    sizes: tuple[int, int]
    clip: float | None


def rotation_of(width: int, activation_bits: int) -> Rotation:
    """Over all channels at once where the odd part of the width is small, else in blocks."""
    n = width & -width
    m = width // n
    return Rotation((m if m <= MOST_MIXED else 1, n), CLIP.get(activation_bits))


def random_signs(seed: int, name: str, width: int) -> Tensor:
    """(width,) float32 of 1 and -1, drawn from (seed, group)."""
    return torch.randint(0, 2, (width,), generator=generator(seed, name, "rotation")).float() * 2 - 1
