"""Routed experts: low-rank corrections of what the shared expert leaves, each for its own kind of token.

method.md, section 4, step 6. Everything here works on the scaled inputs. An expert is ``up`` (out, r), orthonormal, and
``down = upᵀ E_S`` (r, d), so that the squared error it leaves on a token is ``||E_S x||² - ||down x||²``: comparing
experts needs the (tokens, r) projections only, never an output of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant_experts.linalg import Operator, damped_moment, low_rank, token_moment
from quant_experts.problem import GroupProblem
from quant_experts.seeding import generator

PRIOR_SHARE = 0.01
"""Weight of the global moment in each expert's own, in units of the reservoir: an expert with few tokens leans on
it."""

SETTLED = 0.005
"""Share of tokens that may still change experts when the rounds stop early."""

CHUNK = 2048
"""Tokens whose full-width residual is held at once: (2048, 37888) float32 is 300 MB."""


@dataclass(frozen=True)
class RoutedExperts:
    """``up``: (N, out, r) float32, orthonormal columns; ``down``: (N, r, d) float32."""

    up: Tensor
    down: Tensor


def fit_on_clusters(problem: GroupProblem, error: Tensor, labels: Tensor, rank: int) -> RoutedExperts:
    """One expert per cluster: tokens weigh as many as they have important channels in it.

    error: (out, d), what the shared expert leaves; labels: cluster of each channel of C_r, (n,) int64.
    """
    occurrence = problem.important[:, problem.partition.dependent].float()
    membership = torch.nn.functional.one_hot(labels.to(occurrence.device)).float()
    return _fit(problem, error, occurrence @ membership, rank, "clusters")


def fit_everywhere(problem: GroupProblem, error: Tensor, rank: int) -> RoutedExperts:
    """A single expert for all tokens, for a group without token-dependent channels."""
    everyone = problem.samples.new_ones(problem.samples.shape[0], 1)
    return _fit(problem, error, everyone, rank, "single")


def reassign(problem: GroupProblem, error: Tensor, experts: RoutedExperts, rank: int, rounds: int) -> RoutedExperts:
    """Lloyd rounds: give each reservoir token to the expert that serves it best, refit each expert on its own
    tokens."""
    previous = best_expert(problem.samples, experts)
    count = experts.down.shape[0]
    for step in range(rounds):
        omega = torch.nn.functional.one_hot(previous, count).float()
        experts = _fit(problem, error, omega, rank, f"lloyd {step}", near=experts)
        assigned = best_expert(problem.samples, experts)
        moved = float((assigned != previous).float().mean())
        previous = assigned
        if moved <= SETTLED:
            break
    return experts


def _fit(
    problem: GroupProblem, error: Tensor, omega: Tensor, rank: int, stage: str, near: RoutedExperts | None = None
) -> RoutedExperts:
    """omega: (R, N), the weight of each reservoir token in each expert's moment."""
    prior = damped_moment(problem.second_moment, problem.tokens, problem.spec.damping)
    fitted = [
        low_rank(
            error,
            _own_moment(problem, omega[:, i], prior),
            rank,
            _source(problem, stage, i),
            near=None if near is None else near.up[i],
        )
        for i in range(omega.shape[1])
    ]
    return RoutedExperts(torch.stack([up for up, _ in fitted]), torch.stack([down for _, down in fitted]))


def _own_moment(problem: GroupProblem, weight: Tensor, prior: Operator) -> Operator:
    # ω counts channels, so that its mean over tokens is not 1: the prior is weighed in the same unit.
    unit = float(weight[weight > 0].mean()) if bool((weight > 0).any()) else 1.0
    return token_moment(problem.samples, weight, prior, PRIOR_SHARE * unit * problem.samples.shape[0])


def _source(problem: GroupProblem, stage: str, expert: int) -> torch.Generator:
    return generator(problem.spec.seed, problem.name, "routed", stage, str(expert))


def explained(x: Tensor, experts: RoutedExperts) -> Tensor:
    """||down_i x||² of each token and expert: what the expert takes off the squared error. x: (T, d) → (T, N)."""
    return torch.stack([(x @ down.T).square().sum(-1) for down in experts.down], dim=-1)


def best_expert(x: Tensor, experts: RoutedExperts) -> Tensor:
    """The expert that leaves the smallest error on each token, (T,) int64. x: (T, d), scaled."""
    return explained(x, experts).argmax(-1)


def residual_norms(x: Tensor, error: Tensor, experts: RoutedExperts) -> Tensor:
    """||(E_S - up_i down_i) x|| for every token and expert. x: (T, d); error: (out, d); returns (T, N) float32."""
    before = torch.cat([(rows @ error.T).square().sum(-1) for rows in torch.split(x, CHUNK)])
    return (before.unsqueeze(-1) - explained(x, experts)).clamp_min(0).sqrt()
