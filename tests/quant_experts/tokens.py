"""Seeded activations with the structure that the method is about: a few loud channels, and channels that matter for
some tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.statistics import GroupStatistics, Observation, channel_importance
from quant_experts.spec.specification import QuantizationSpec

WIDTH = 64
KINDS = 4


def mixture(count: int, *, seed: int = 0, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Tokens (count, width) of four kinds, each kind loud in its own block of channels, all loud in the first two
    channels; and which are vision tokens: kinds 0 and 1."""
    source = torch.Generator().manual_seed(seed)
    kind = torch.randint(KINDS, (count,), generator=source)
    x = torch.randn(count, width, generator=source) * 0.3
    block = (width - 8) // KINDS
    for i in range(KINDS):
        columns = slice(8 + i * block, 8 + i * block + 6)
        x[kind == i, columns] += torch.randn(int((kind == i).sum()), 6, generator=source) * 4
    x[:, :2] += 6
    return x, kind < 2


def weights(*, seed: int = 1, width: int = WIDTH) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(out, width, generator=source) / width**0.5 for name, out in (("q", 48), ("k", 16))}


def spec(method: str = "qe", **options: object) -> QuantizationSpec:
    """Small ranks and one scale per row, so that the tests are quick."""
    small = {"group_size": "channel", "important_channels": 4, "adapter_dtype": "bf16"}
    ranks = {"experts": 4, "shared_rank": 4, "routed_rank": 4}
    return QuantizationSpec.preset(method, **{**small, **ranks, **options})


def observe(
    x: Tensor, vision: Tensor, layers: dict[str, Tensor], chosen: QuantizationSpec, *, name: str = "block.attn.qkv"
) -> Observation:
    statistics = GroupStatistics(
        name,
        x.shape[1],
        channel_importance(torch.cat([layer.float() for layer in layers.values()])),
        important_channels=chosen.important_channels,
        reservoir=chosen.reservoir,
        seed=chosen.seed,
        device=x.device,
    )
    statistics.update(x, vision)
    return statistics.finish()
