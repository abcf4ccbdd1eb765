"""The parts of Quant Experts: who counts as important, who belongs together, and who corrects what."""

from __future__ import annotations

import warnings

import pytest
import torch

from quant_experts.fit.experts.clustering import cluster_at_random, cluster_by_co_occurrence, npmi
from quant_experts.fit.experts.output_errors import output_errors
from quant_experts.fit.experts.partition import partition_channels
from quant_experts.fit.experts.routed import best_expert, explained, fit_on_clusters, reassign, residual_norms
from quant_experts.fit.experts.router import norm_router, normalised, random_router, ridge_router, route
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.quantizer import quantize
from quant_experts.forward.modeling_quant_experts import dequantize
from quant_experts.seeding import generator
from tests.quant_experts.problems import problem_of
from tests.quant_experts.tokens import KINDS, WIDTH, mixture


def _error(problem: GroupProblem) -> torch.Tensor:
    return problem.weight - dequantize(*quantize(problem.weight, 4, problem.width), torch.float32)


def _labels(problem: GroupProblem) -> torch.Tensor:
    return cluster_by_co_occurrence(problem.important[:, problem.partition.dependent], problem.spec.experts)


def test_the_most_frequent_channels_are_independent_and_the_next_dependent() -> None:
    counts = torch.tensor([5, 9, 0, 9, 1, 7])
    parts = partition_channels(counts, torch.tensor([1.0, 1.0, 9.0, 2.0, 1.0, 1.0]), k=2, experts=1)
    assert parts.independent.tolist() == [3, 1]
    assert parts.dependent.tolist() == [5, 0]
    rest = partition_channels(counts, torch.ones(6), k=2, experts=8)
    assert rest.dependent.tolist() == [5, 0, 4]


def test_npmi_is_one_for_channels_that_always_meet_and_zero_for_strangers() -> None:
    occurrence = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]]).bool()
    similarity = npmi(occurrence)
    assert similarity[0, 1] == pytest.approx(1.0)
    assert similarity[0, 2] == 0.0
    assert similarity[0, 3] == pytest.approx(0.0, abs=1e-9)
    together = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    by_hand = torch.log(torch.tensor(0.5 / (0.75 * 0.5))) / -torch.log(torch.tensor(0.5))
    assert float(npmi(together)[0, 1]) == pytest.approx(float(by_hand), rel=1e-5)
    assert torch.equal(similarity, similarity.T)


def test_channels_of_one_kind_of_token_end_in_one_cluster() -> None:
    source = torch.Generator().manual_seed(0)
    kind = torch.randint(3, (500,), generator=source)
    occurrence = torch.zeros(500, 18, dtype=torch.bool)
    for channel in range(18):
        occurrence[:, channel] = (kind == channel % 3) & (torch.rand(500, generator=source) < 0.6)
    labels = cluster_by_co_occurrence(occurrence, 3)
    assert all(len(set(labels[i::3].tolist())) == 1 for i in range(3))
    assert len(set(labels.tolist())) == 3


@pytest.mark.parametrize(
    "occurrence",
    [
        torch.ones(1, 12),
        torch.ones(50, 12),
        torch.zeros(50, 12),
        torch.eye(12),
        torch.cat([torch.ones(20, 6), torch.zeros(20, 6)], 1),
        torch.eye(3).repeat(5, 1),
        torch.ones(4, 1),
    ],
    ids=["one token", "always all", "never any", "isolated", "half dead", "fewer than clusters", "one channel"],
)
def test_degenerate_co_occurrence_gives_full_labels_without_a_warning(occurrence: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = cluster_by_co_occurrence(occurrence.bool(), 5)
    clusters = min(5, occurrence.shape[1])
    assert sorted(set(labels.tolist())) == list(range(clusters))


def test_random_clusters_are_equal_in_size_and_follow_the_seed() -> None:
    first = cluster_at_random(24, 4, generator(0, "g"))
    assert torch.bincount(first).tolist() == [6, 6, 6, 6]
    assert torch.equal(first, cluster_at_random(24, 4, generator(0, "g")))
    assert not torch.equal(first, cluster_at_random(24, 4, generator(1, "g")))


@pytest.mark.parametrize("out", [24, 64, 200])
def test_errors_seen_from_the_output_are_the_errors_whatever_the_shape(out: int) -> None:
    """A group wider at its output than at its input is fitted in the coordinates of its input's width."""
    layers = {"q": torch.randn(out, WIDTH, generator=torch.Generator().manual_seed(2))}
    problem = problem_of(layers=layers)
    error = _error(problem)
    errors = output_errors(problem, error)
    assert errors.matrix.shape == (min(out, WIDTH), WIDTH)
    formed = problem.samples @ error.T
    torch.testing.assert_close(errors.tokens.norm(dim=-1), formed.norm(dim=-1), rtol=1e-4, atol=1e-4)
    experts = fit_on_clusters(problem, errors, _labels(problem), 4)
    up = errors.expand(experts.up)
    assert up.shape == (KINDS, out, 4)
    torch.testing.assert_close(up.transpose(1, 2) @ up, torch.eye(4).expand(KINDS, 4, 4), rtol=0, atol=1e-4)
    torch.testing.assert_close(up.transpose(1, 2) @ error, experts.down, rtol=1e-3, atol=1e-3)
    corrected = (problem.samples @ experts.down.transpose(1, 2)) @ up.transpose(1, 2)  # (N, tokens, out)
    left = formed.unsqueeze(1) - corrected.transpose(0, 1)
    torch.testing.assert_close(residual_norms(errors.tokens, experts), left.norm(dim=-1), rtol=1e-3, atol=1e-3)


def test_an_expert_is_the_optimum_under_its_own_tokens_moment() -> None:
    problem = problem_of()
    error = _error(problem)
    errors = output_errors(problem, error)
    labels = _labels(problem)
    experts = fit_on_clusters(problem, errors, labels, 4)
    x = problem.samples.double()
    prior = problem.second_moment.double() / problem.tokens
    prior.diagonal().add_(problem.spec.damping * prior.diagonal().mean())
    for i in range(KINDS):
        omega = problem.important[:, problem.partition.dependent[labels == i]].double().sum(-1)
        moment = (x.T * omega) @ x + 0.01 * omega[omega > 0].mean() * len(x) * prior
        lower = torch.linalg.cholesky(moment)
        exact = torch.linalg.svdvals(error.double() @ lower)[4:].square().sum()
        found = (error - errors.expand(experts.up)[i] @ experts.down[i]).double() @ lower
        assert float(exact) * (1 - 1e-5) <= float(found.square().sum()) <= float(exact) * 1.002


def test_lloyd_rounds_lower_the_error_of_the_best_expert() -> None:
    problem = problem_of()
    error = _error(problem)
    errors = output_errors(problem, error)
    start = fit_on_clusters(problem, errors, _labels(problem), 4)
    left = [float(residual_norms(errors.tokens, start).amin(-1).square().sum())]
    for rounds in (1, 3):
        refitted = reassign(problem, errors, start, 4, rounds)
        left.append(float(residual_norms(errors.tokens, refitted).amin(-1).square().sum()))
    assert left[1] < left[0]
    assert left[2] <= left[1] * 1.001


def test_a_routed_expert_serves_its_own_tokens_better_than_another_expert_does() -> None:
    problem = problem_of()
    error = _error(problem)
    errors = output_errors(problem, error)
    experts = reassign(problem, errors, fit_on_clusters(problem, errors, _labels(problem), 4), 4, 3)
    mine = best_expert(errors.tokens, experts)
    taken = explained(errors.tokens, experts)
    assert len(mine.unique()) == KINDS
    own = taken.gather(-1, mine.unsqueeze(-1)).sum()
    assert float(own) > 1.3 * float(taken.mean(-1).sum())


def test_residual_norms_equal_the_norm_of_what_each_expert_leaves() -> None:
    problem = problem_of()
    error = _error(problem)
    errors = output_errors(problem, error)
    experts = fit_on_clusters(problem, errors, _labels(problem), 4)
    x = problem.samples[:40]
    formed = torch.stack(
        [(x @ (error - up @ down).T).norm(dim=-1) for up, down in zip(experts.up, experts.down, strict=True)], dim=-1
    )
    torch.testing.assert_close(residual_norms(x @ error.T, experts), formed, rtol=1e-3, atol=1e-3)


def test_the_norm_router_holds_the_column_norms_of_each_experts_residual() -> None:
    problem = problem_of()
    error = _error(problem)
    errors = output_errors(problem, error)
    experts = fit_on_clusters(problem, errors, _labels(problem), 4)
    formed = torch.stack([(error - u @ d).norm(dim=0) for u, d in zip(experts.up, experts.down, strict=True)])
    torch.testing.assert_close(norm_router(error, experts), formed, rtol=1e-3, atol=1e-4)


def test_the_ridge_router_sends_unseen_tokens_better_than_the_norm_router_and_chance() -> None:
    problem = problem_of()
    error = _error(problem)
    errors = output_errors(problem, error)
    experts = reassign(problem, errors, fit_on_clusters(problem, errors, _labels(problem), 4), 4, 3)
    start = norm_router(error, experts)
    ridge = ridge_router(problem.samples, residual_norms(errors.tokens, experts), start)
    chance = random_router(problem.samples, KINDS, generator(0, "g"))
    x, _ = mixture(400, seed=77)
    norms = residual_norms(x @ error.T, experts).square()
    left = {
        name: float(norms.gather(-1, route(router, x).unsqueeze(-1)).sum())
        for name, router in (("ridge", ridge), ("norm", start), ("chance", chance))
    }
    assert left["ridge"] < left["norm"]
    assert left["ridge"] < 0.8 * left["chance"]


def test_both_forms_of_the_ridge_solve_agree() -> None:
    """Fewer tokens than channels take the (tokens, tokens) form; doubling the tokens must not change the optimum."""
    source = torch.Generator().manual_seed(0)
    x, norms = torch.randn(20, 24, generator=source), torch.rand(20, 3, generator=source)
    start = torch.rand(3, 24, generator=source)
    few = ridge_router(x, norms, start)
    many = ridge_router(x.repeat(2, 1), norms.repeat(2, 1), start)
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-5)


def test_a_random_router_uses_every_expert() -> None:
    x, _ = mixture(500)
    chosen = route(random_router(x, 4, generator(0, "g")), x)
    assert torch.bincount(chosen, minlength=4).min() > 25


def test_normalising_a_router_changes_no_decision() -> None:
    x, _ = mixture(200)
    router = torch.rand(4, x.shape[1], generator=torch.Generator().manual_seed(0)) * 1e-6
    assert torch.equal(route(router, x), route(normalised(router), x))
    assert float(normalised(router).abs().max()) == pytest.approx(1.0)
    assert torch.equal(normalised(torch.ones(1, 4)), torch.zeros(1, 4))
