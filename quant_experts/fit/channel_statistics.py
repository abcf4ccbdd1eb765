"""How reliably the calibration tokens of one input group show which of its channels matter."""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.experts.partition import partition_channels
from quant_experts.fit.statistics import Observation, important_channels
from quant_experts.report.data import ChannelStatistics, FrequencyPoint
from quant_experts.spec.ranks import COUNTS, Ranks
from quant_experts.spec.specification import QuantizationSpec

CURVE_POINTS = 64
CHUNK = 1024
"""Held-out tokens scored at a time."""


@torch.no_grad()
def describe_channels(
    observation: Observation, importance: Tensor, held_out: Tensor, spec: QuantizationSpec, ranks: Ranks
) -> ChannelStatistics:
    """importance: (d,), of the group's weights; held_out: (T, d), any float dtype, tokens that were never fitted on."""
    counts = observation.counts
    width = counts.shape[0]
    k = min(spec.important_channels, max(width // 2, 1))  # as the fit resolves it
    partition = partition_channels(counts, observation.mean_abs * importance, k=k, experts=_experts(spec, ranks))
    first = observation.counts_first_half
    return ChannelStatistics(
        independent=len(partition.independent),
        dependent=len(partition.dependent),
        curve=frequency_curve(counts, observation.tokens),
        split_half=rank_correlation(first, counts - first),
        unseen_share=_unseen_share(counts, importance, held_out, spec.important_channels),
    )


def _experts(spec: QuantizationSpec, ranks: Ranks) -> int:
    """Routed experts of the group; in a group without any, the number that a larger group would have."""
    return spec.experts if isinstance(spec.experts, int) else ranks.experts or COUNTS[0]


def frequency_curve(counts: Tensor, tokens: int) -> list[FrequencyPoint]:
    """counts: (d,) int64, in any order. At most ``CURVE_POINTS`` points, ranks evenly spaced in their logarithm."""
    shares = (counts.sort(descending=True).values.double() / tokens).tolist()
    steps = torch.logspace(0, torch.log10(torch.tensor(float(len(shares)))).item(), CURVE_POINTS, dtype=torch.float64)
    ranks = sorted({1, len(shares), *(min(max(round(step), 1), len(shares)) for step in steps.tolist())})
    return [FrequencyPoint(rank=rank, share=shares[rank - 1]) for rank in ranks]


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's: Pearson correlation of the ranks, equal values sharing their mean rank. a, b: (d,).

    None when either is constant, because then it has no order.
    """
    x, y = (_centred_ranks(values) for values in (a, b))
    scale = float(x.norm() * y.norm())
    return max(-1.0, min(1.0, float(x @ y) / scale)) if scale > 0 else None


def _centred_ranks(values: Tensor) -> Tensor:
    """(d,) float64, mean zero."""
    _, place, repeated = torch.unique(values.cpu(), sorted=True, return_inverse=True, return_counts=True)
    last = repeated.cumsum(0).double()
    ranks: Tensor = (last - (repeated - 1) / 2)[place]
    return ranks - (len(values) + 1) / 2


def _unseen_share(counts: Tensor, importance: Tensor, held_out: Tensor, k: int) -> float | None:
    """Share of tokens that have a channel with no count among their important ones."""
    if held_out.shape[0] == 0:
        return None
    unseen = counts == 0
    tokens = sum(
        int((important_channels(x.to(counts.device), importance, k) & unseen).any(-1).sum())
        for x in torch.split(held_out, CHUNK)
    )
    return tokens / held_out.shape[0]
