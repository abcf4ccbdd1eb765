"""A seeded group problem, as the three slots see it."""

from __future__ import annotations

import torch
from torch import Tensor

from quant_experts.fit.experts.partition import partition_channels
from quant_experts.fit.problem import EQUAL_WEIGHTS, GroupProblem, ModalityWeights
from quant_experts.fit.statistics import channel_importance, important_channels
from tests.quant_experts.tokens import mixture, observe, spec, weights


def problem_of(
    x: Tensor | None = None,
    vision: Tensor | None = None,
    layers: dict[str, Tensor] | None = None,
    *,
    group_size: int | None = None,
    method: str = "qe",
    modality_weights: ModalityWeights = EQUAL_WEIGHTS,
    **options: object,
) -> GroupProblem:
    if x is None or vision is None:
        x, vision = mixture(600)
    layers = layers or weights()
    chosen = spec(method, **options)
    observation = observe(x, vision, layers, chosen)
    weight = torch.cat(list(layers.values()))
    importance = channel_importance(weight)
    k = chosen.important_channels
    ranks = chosen.ranks_for(rows=weight.shape[0], width=weight.shape[1], layers=len(layers))
    return GroupProblem.of(
        weight,
        observation,
        important_channels(observation.tokens_kept, importance, k),
        partition_channels(observation.counts, observation.mean_abs * importance, k=k, experts=ranks.experts),
        chosen,
        ranks,
        group_size or weight.shape[1],
        torch.float32,
        modality_weights,
    )
