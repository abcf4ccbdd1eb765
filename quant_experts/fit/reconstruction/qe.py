"""Quant Experts: a shared expert for every token, and one routed expert per token (method.md, section 4, steps 3 to
8)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from quant_experts.fit.experts.clustering import cluster_at_random, cluster_by_co_occurrence
from quant_experts.fit.experts.output_errors import OutputErrors, output_errors
from quant_experts.fit.experts.partition import channel_mask
from quant_experts.fit.experts.refine import refine
from quant_experts.fit.experts.routed import RoutedExperts, fit_everywhere, fit_on_clusters, reassign, residual_norms
from quant_experts.fit.experts.router import norm_router, random_router, ridge_router
from quant_experts.fit.experts.shared import fit_shared
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.reconstruction import Adapters, clamped_rank, no_columns
from quant_experts.seeding import generator


def exempt_columns(problem: GroupProblem) -> Tensor:
    """The token-independent channels, unless the spec keeps them in the base, has no shared expert for them, or a
    rotation mixes them with the others.

    No more than the shared expert's rank, which alone can carry a column whole: of any other, part is lost.
    """
    if not problem.spec.exempt or problem.ranks.shared == 0 or problem.rotation is not None:
        return no_columns(problem)
    exempt = problem.partition.independent
    if problem.spec.method_version > 1:
        exempt = exempt[: problem.ranks.shared]
    return channel_mask(exempt, problem.width)


def reconstruct(problem: GroupProblem, base: Tensor) -> Adapters:
    """Either kind of expert may be left out, as in the paper's ablation: ``shared_rank`` 0 or ``experts`` 0."""
    error = problem.weight - base
    adapters = Adapters()
    if problem.ranks.shared:
        adapters = _shared_expert(problem, error)
        assert adapters.shared_up is not None
        assert adapters.shared_down is not None
        error = error - adapters.shared_up @ adapters.shared_down
    if problem.ranks.experts:
        adapters = _with_routed_experts(problem, error, adapters)
    trains = problem.spec.refine != "none" and adapters.routed_up is not None
    return refine(problem, base, adapters) if trains else adapters


def _shared_expert(problem: GroupProblem, error: Tensor) -> Adapters:
    rank, warnings = clamped_rank(problem, problem.ranks.shared, "shared_rank")
    up, down = fit_shared(problem, error, rank)
    return Adapters(shared_up=up, shared_down=down, warnings=warnings)


def _with_routed_experts(problem: GroupProblem, error: Tensor, adapters: Adapters) -> Adapters:
    rank, warned = clamped_rank(problem, problem.ranks.routed, "routed_rank")
    errors = output_errors(problem, error)
    experts, warned_experts = _routed_experts(problem, errors, rank)
    return replace(
        adapters,
        routed_up=errors.expand(experts.up),
        routed_down=experts.down,
        router=_router(problem, errors, experts),
        warnings=adapters.warnings + warned + warned_experts,
    )


def _routed_experts(problem: GroupProblem, errors: OutputErrors, rank: int) -> tuple[RoutedExperts, tuple[str, ...]]:
    dependent, spec, target = problem.partition.dependent, problem.spec, problem.ranks.experts
    count = min(target, len(dependent))
    if count < 2:
        warned = () if target < 2 else (_too_few(problem, 1),)
        return fit_everywhere(problem, errors, rank), warned
    if spec.clustering == "random":
        labels = cluster_at_random(len(dependent), count, generator(spec.seed, problem.name, "clusters"))
    else:
        labels = cluster_by_co_occurrence(problem.important[:, dependent], count)
    experts = fit_on_clusters(problem, errors, labels, rank)
    warned = (_too_few(problem, count),) if count < target else ()
    return reassign(problem, errors, experts, rank, spec.lloyd_rounds), warned


def _too_few(problem: GroupProblem, count: int) -> str:
    return (
        f"{problem.name}: {len(problem.partition.dependent)} token-dependent channels are too few for "
        f"{problem.ranks.experts} experts; {count} fitted"
    )


def _router(problem: GroupProblem, errors: OutputErrors, experts: RoutedExperts) -> Tensor:
    spec = problem.spec
    if spec.router == "random":
        source = generator(spec.seed, problem.name, "router")
        return random_router(problem.samples, experts.down.shape[0], source)
    start = norm_router(errors.matrix, experts)
    if spec.router == "norm":
        return start
    return ridge_router(problem.samples, residual_norms(errors.tokens, experts), start)
