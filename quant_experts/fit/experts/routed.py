"""Routed experts: low-rank corrections of what the shared expert leaves, each for its own kind of token.

method.md, section 4, step 6. Everything here works on the scaled inputs, and on the errors ``E_S x`` that they cause
(``OutputErrors``). An expert is ``up`` (m, r), orthonormal, and ``down = upᵀ E_S`` (r, d), so that the squared
error it leaves on a token is ``||E_S x||² - ||upᵀ E_S x||²``: comparing experts needs (tokens, r) projections only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant_experts.fit.experts.output_errors import OutputErrors
from quant_experts.fit.linear_algebra import (
    ITERATIONS,
    ITERATIONS_NEAR,
    OVERSAMPLING,
    Operator,
    leading_directions,
    token_moment,
)
from quant_experts.fit.problem import GroupProblem
from quant_experts.seeding import generator

PRIOR_SHARE = 0.01
"""Weight of the global moment in each expert's own, in units of the reservoir: an expert with few tokens leans on
it."""

SETTLED = 0.005
"""Share of tokens that may still change experts when the rounds stop early."""


@dataclass(frozen=True)
class RoutedExperts:
    """``up``: (N, m, r) float32, orthonormal columns in the coordinates of ``OutputErrors``; ``down``: (N, r, d)
    float32."""

    up: Tensor
    down: Tensor


def fit_on_clusters(problem: GroupProblem, errors: OutputErrors, labels: Tensor, rank: int) -> RoutedExperts:
    """One expert per cluster: tokens weigh as many as they have important channels in it.

    labels: cluster of each channel of C_r, (n,) int64.
    """
    occurrence = problem.important[:, problem.partition.dependent].float()
    membership = torch.nn.functional.one_hot(labels.to(occurrence.device)).float()
    return _fit(problem, errors, occurrence @ membership, rank, "clusters")


def fit_everywhere(problem: GroupProblem, errors: OutputErrors, rank: int) -> RoutedExperts:
    """A single expert for all tokens, for a group without token-dependent channels."""
    everyone = problem.samples.new_ones(problem.samples.shape[0], 1)
    return _fit(problem, errors, everyone, rank, "single")


def reassign(
    problem: GroupProblem, errors: OutputErrors, experts: RoutedExperts, rank: int, rounds: int
) -> RoutedExperts:
    """Lloyd rounds: give each reservoir token to the expert that serves it best, refit each expert on its own
    tokens."""
    previous = best_expert(errors.tokens, experts)
    count = experts.down.shape[0]
    for step in range(rounds):
        omega = torch.nn.functional.one_hot(previous, count).float()
        experts = _fit(problem, errors, omega, rank, f"lloyd {step}", near=experts)
        experts_of_tokens = best_expert(errors.tokens, experts)
        share = float((experts_of_tokens != previous).float().mean())
        previous = experts_of_tokens
        if share <= SETTLED:
            break
    return experts


def _fit(
    problem: GroupProblem,
    errors: OutputErrors,
    omega: Tensor,
    rank: int,
    stage: str,
    near: RoutedExperts | None = None,
) -> RoutedExperts:
    """omega: (R, N), the weight of each reservoir token in each expert's moment."""
    ups = torch.stack(
        [
            _directions(
                _own_moment(errors, omega[:, i]),
                errors.matrix,
                rank,
                generator(problem.spec.seed, problem.name, "routed", stage, str(i)),
                near=None if near is None else near.up[i],
            )
            for i in range(omega.shape[1])
        ]
    )
    return RoutedExperts(ups, ups.transpose(1, 2) @ errors.matrix)


def _directions(moment: Operator, matrix: Tensor, rank: int, source: torch.Generator, near: Tensor | None) -> Tensor:
    """(m, r), r = min(rank, m, d). ``near``: (m, r), the answer to a similar problem; fewer iterations then do."""
    m = matrix.shape[0]
    width = min(rank + OVERSAMPLING, m)
    near_columns = 0 if near is None else near.shape[1]
    start = moment(torch.randn(m, width - near_columns, generator=source, dtype=torch.float32).to(matrix.device))
    if near is None:
        return leading_directions(moment, start, min(rank, width), ITERATIONS)
    return leading_directions(moment, torch.cat([near, start], dim=1), min(rank, width), ITERATIONS_NEAR)


def _own_moment(errors: OutputErrors, weight: Tensor) -> Operator:
    # ω counts channels, so that its mean over tokens is not 1: the prior is weighed in the same unit.
    unit = float(weight[weight > 0].mean()) if bool((weight > 0).any()) else 1.0
    return token_moment(errors.tokens, weight, lambda v: errors.prior @ v, PRIOR_SHARE * unit * errors.tokens.shape[0])


def explained(errors: Tensor, experts: RoutedExperts) -> Tensor:
    """||up_iᵀ E_S x||² of each token and expert: what the expert takes off the squared error. errors: (T, m), E_S x;
    returns (T, N)."""
    count, m, rank = experts.up.shape
    projected = errors @ experts.up.transpose(0, 1).reshape(m, count * rank)
    return projected.square().reshape(-1, count, rank).sum(-1)


def best_expert(errors: Tensor, experts: RoutedExperts) -> Tensor:
    """The expert that leaves the smallest error on each token, (T,) int64. errors: (T, m)."""
    return explained(errors, experts).argmax(-1)


def residual_norms(errors: Tensor, experts: RoutedExperts) -> Tensor:
    """||(E_S - up_i down_i) x|| for every token and expert. errors: (T, m), E_S x; returns (T, N) float32."""
    before = errors.square().sum(-1, keepdim=True)
    return (before - explained(errors, experts)).clamp_min(0).sqrt()
