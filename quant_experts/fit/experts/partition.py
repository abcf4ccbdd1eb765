"""Channels that matter for nearly all tokens, and channels that matter for some (method.md, section 4, step 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Partition:
    """``independent``: indices of C_s, at most k. ``dependent``: indices of C_r, at most N_r·k. Both int64, most
    frequent first, disjoint; a channel that was never important is in neither."""

    independent: Tensor
    dependent: Tensor


def partition_channels(counts: Tensor, magnitude: Tensor, *, k: int, experts: int) -> Partition:
    """Split by how many tokens find a channel important. counts: (d,) int64, m_c; magnitude: (d,), breaks ties (mean
    |x_c| w_c)."""
    by_magnitude = magnitude.argsort(descending=True, stable=True)
    order = by_magnitude[counts[by_magnitude].argsort(descending=True, stable=True)]
    order = order[: int((counts > 0).sum())]
    return Partition(independent=order[:k], dependent=order[k : k + experts * k])


def channel_mask(channels: Tensor, width: int) -> Tensor:
    """channels: indices; returns (width,) bool."""
    mask = torch.zeros(width, dtype=torch.bool, device=channels.device)
    mask[channels] = True
    return mask
