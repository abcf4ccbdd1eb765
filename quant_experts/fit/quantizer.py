"""Symmetric integer quantization: weights in groups of input channels, activations per token.

Activations, and weights on the ``max`` grid, take integers in [-(2^(b-1)-1), 2^(b-1)-1]. Weights on the ``searched``
grid (weight_grid.py) take -2^(b-1) as well. Zero is exact in both, and every value fits the ``pack-quantized`` layout
of compressed-tensors, which adds 2^(b-1) before packing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.forward.modeling_quant_experts import fake_quantize_tokens
from quant_experts.spec.schemes import UNQUANTIZED


def largest_integer(bits: int) -> int:
    """The bound on both sides: 7 for 4 bits, 127 for 8."""
    return int(2 ** (bits - 1) - 1)


def weight_scales(w: Tensor, bits: int, group_size: int, scale_dtype: torch.dtype = torch.float32) -> Tensor:
    """One scale per (row, group) that maps the group's largest magnitude on the largest integer.

    w: (out, d) float; returns (out, d / group_size) float32 holding values that ``scale_dtype`` represents exactly,
    because codes must be chosen for the scale that is stored, not for the one that was computed. A group of zeros
    gets scale 1.
    Raises ValueError when ``group_size`` does not divide d.
    """
    out, d = w.shape
    if d % group_size:
        raise ValueError(f"group size {group_size} does not divide the input width {d}")
    largest = w.float().reshape(out, d // group_size, group_size).abs().amax(-1)
    scales = (largest / largest_integer(bits)).to(scale_dtype).float()
    # A group whose weights are below the smallest number of scale_dtype (float16: 6e-8) cannot be told from zero.
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def encode(w: Tensor, scales: Tensor, low: int, high: int, group_size: int) -> Tensor:
    """Round to nearest on the grid of ``scales``, integers from low to high.

    w: (out, d); scales: (out, d/g); returns (out, d) int8.
    """
    out, d = w.shape
    grid = w.float().reshape(out, d // group_size, group_size) / scales.float().unsqueeze(-1)
    return grid.round_().clamp_(low, high).to(torch.int8).reshape(out, d)


def quantize(w: Tensor, bits: int, group_size: int, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Round-to-nearest quantization of a weight on the ``max`` grid.

    w: (out, d) float; returns codes (out, d) int8 and scales (out, d/g) float32, rounded to ``scale_dtype``.
    Raises ValueError when ``group_size`` does not divide d.
    """
    scales, bound = weight_scales(w, bits, group_size, scale_dtype), largest_integer(bits)
    return encode(w, scales, -bound, bound, group_size), scales


def round_tokens(x: Tensor, bits: int, clip: float | None = None) -> Tensor:
    """Activations as a quantized layer reads them: ``Q(x)``, with one dynamic symmetric scale per token.

    x: (..., d) float; returns the same shape and dtype; 16 bits returns x itself. A token of zeros stays zero. The
    scale is computed in float32 whatever the dtype of x. ``clip``: in root mean squares of the token, or None.
    """
    return x if bits == UNQUANTIZED else fake_quantize_tokens(x, bits, clip).to(x.dtype)
