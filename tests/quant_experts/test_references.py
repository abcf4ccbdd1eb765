"""Every method against a small computation of the same thing that is exact, explicit and slow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from quant_experts.errors import InvalidSpec
from quant_experts.fit import reconstruction, rounding, smoothing
from quant_experts.fit.experts.shared import fit_shared
from quant_experts.fit.problem import GroupProblem, ModalityWeights
from quant_experts.fit.quantizer import quantize, round_tokens
from quant_experts.fit.rounding.obq import WIDTH_LIMIT
from quant_experts.forward.modeling_quant_experts import dequantize
from quant_experts.seeding import generator
from tests.quant_experts import problems
from tests.quant_experts.tokens import mixture, weights

problem_of = partial(problems.problem_of, weight_grid="max")
"""The papers' grid; the searched one is in test_weight_grid.py."""
NONE = torch.zeros(64, dtype=torch.bool)


def correlated(count: int, width: int, seed: int = 9, own: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tokens (count, width) whose channels move together, so that one can make up for another; and their modality.

    ``own``: what each channel has of its own.
    """
    source = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=source) / width**0.5
    x = torch.randn(count, width, generator=source) @ (mixing + own * torch.eye(width))
    return x, torch.arange(count) % 3 > 0


def damped(problem: GroupProblem) -> Tensor:
    """H/T + damping · mean diagonal · I, (d, d) float64."""
    moment = problem.second_moment.double() / problem.tokens
    moment.diagonal().add_(problem.spec.damping * moment.diagonal().mean())
    return moment


def output_error(problem: GroupProblem, codes: Tensor, scales: Tensor) -> float:
    rest = problem.weight - dequantize(codes, scales, torch.float32)
    return float(((rest @ problem.second_moment) * rest).sum())


# --- Optimal brain quantization, one weight at a time ----------------------------------------------------------------

Choose = Callable[[Tensor, Tensor, Tensor, list[int]], int]
"""(weights, steps, H⁻¹ of what remains, remaining) → the weight of the row to round next."""


def nearest(w: Tensor, step: Tensor, bits: int) -> Tensor:
    bound = 2 ** (bits - 1) - 1
    return (w / step).round().clamp(-bound, bound)


def greedy(w: Tensor, step: Tensor, inverse: Tensor, remaining: list[int], bits: int = 4) -> int:
    """The paper's choice; weights outside of the grid first, the one furthest outside of all."""
    error = (w - nearest(w, step, bits) * step).abs()
    outside = [p for p in remaining if error[p] > step[p] / 2 * (1 + 1e-6)]
    if outside:
        return max(outside, key=lambda p: float(error[p]))
    return min(remaining, key=lambda p: float(error[p] ** 2 / inverse[p, p]))


def brain_surgeon(
    weight: Tensor, steps: Tensor, moment: Tensor, start: list[int], choose: Choose, bits: int = 4
) -> Tensor:
    """Frantar & Alistarh 2022, equation 7 and lemma 1, row by row. weight, steps: (out, d); moment: (d, d), damped.

    The inverse is formed afresh for the weights that remain, by torch.linalg.inv: no update formula to get wrong.
    """
    codes = torch.zeros_like(weight, dtype=torch.float64)
    for row, (w, step) in enumerate(zip(weight.double(), steps.double(), strict=True)):
        w, remaining = w.clone(), list(start)
        while remaining:
            inverse = torch.zeros_like(moment)
            inverse[torch.tensor(remaining).unsqueeze(1), remaining] = torch.linalg.inv(moment[remaining][:, remaining])
            p = choose(w, step, inverse, remaining)
            codes[row, p] = nearest(w[p], step[p], bits)
            w = w - (w[p] - codes[row, p] * step[p]) / inverse[p, p] * inverse[:, p]
            remaining.remove(p)
    return codes


def expanded(problem: GroupProblem, scales: Tensor) -> Tensor:
    """The step of every weight, (out, d)."""
    return scales.repeat_interleave(problem.group_size, dim=1)


@pytest.mark.parametrize("group_size", [8, 4])
@pytest.mark.parametrize("seed", range(6))
def test_obq_is_the_textbook_loop(seed: int, group_size: int) -> None:
    source = torch.Generator().manual_seed(seed)
    problem = problem_of(*correlated(40, 8, seed), {"q": torch.randn(6, 8, generator=source)}, group_size=group_size)
    exempt = torch.zeros(8, dtype=torch.bool)
    exempt[seed % 8] = seed > 2
    rounded = rounding.get("obq").round_weights(problem, exempt)
    start = (~exempt).nonzero().flatten().tolist()
    masked = problem.weight.masked_fill(exempt, 0)
    textbook = brain_surgeon(masked, expanded(problem, rounded.scales), damped(problem), start, greedy)
    assert torch.equal(rounded.codes.double(), textbook)


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_that_is_pushed_outside_of_the_grid_is_rounded_next(seed: int) -> None:
    """At eight bits a scale that bfloat16 rounds down leaves the largest weight up to half a step beyond the grid."""
    layer = {"q": torch.randn(96, 8, generator=generator(seed, "weights"))}
    problem = problem_of(*correlated(40, 8, seed, own=0.0), layer, scheme="W8A16")
    problem = replace(problem, scale_dtype=torch.bfloat16)
    rounded = rounding.get("obq").round_weights(problem, torch.zeros(8, dtype=torch.bool))
    pushed = []

    def watched(w: Tensor, step: Tensor, inverse: Tensor, remaining: list[int]) -> int:
        p = greedy(w, step, inverse, remaining, bits=8)
        pushed.append(bool(w[p].abs() > 127.5 * step[p]))
        return p

    steps = expanded(problem, rounded.scales)
    textbook = brain_surgeon(problem.weight, steps, damped(problem), list(range(8)), watched, bits=8)
    assert sum(pushed) >= 1
    assert torch.equal(rounded.codes.double(), textbook)


@pytest.mark.parametrize("group_size", [16, 8])
@pytest.mark.parametrize("seed", range(3))
def test_gptq_is_obq_in_a_fixed_order(seed: int, group_size: int) -> None:
    source = torch.Generator().manual_seed(seed)
    problem = problem_of(*correlated(80, 16, seed), {"q": torch.randn(12, 16, generator=source)}, group_size=group_size)
    exempt = torch.zeros(16, dtype=torch.bool)
    exempt[[1, 5]] = True
    rounded = rounding.get("gptq").round_weights(problem, exempt)
    order = problem.second_moment.diagonal().argsort(descending=True, stable=True).tolist()
    start = [column for column in order if not exempt[column]]
    masked = problem.weight.masked_fill(exempt, 0)
    textbook = brain_surgeon(
        masked, expanded(problem, rounded.scales), damped(problem), start, lambda w, step, inverse, left: left[0]
    )
    assert torch.equal(rounded.codes.double(), textbook)


def test_obq_leaves_less_output_error_than_gptq_and_gptq_less_than_nearest() -> None:
    lost = {"rtn": 0.0, "gptq": 0.0, "obq": 0.0}
    for seed in range(3):
        problem = problem_of(*correlated(600, 64, seed), weights(seed=seed))
        for choice in lost:
            rounded = rounding.get(choice).round_weights(problem, NONE)
            lost[choice] += output_error(problem, rounded.codes, rounded.scales)
    assert lost["obq"] < lost["gptq"] < 0.7 * lost["rtn"]


def test_obq_of_many_rows_is_obq_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(*correlated(300, 64))
    together = rounding.get("obq").round_weights(problem, NONE)
    monkeypatch.setattr("quant_experts.fit.rounding.obq.WORKSPACE", 1)
    alone = rounding.get("obq").round_weights(problem, NONE)
    assert torch.equal(together.codes, alone.codes)


def test_a_group_too_wide_for_obq_is_refused_with_the_limit_and_the_way_out() -> None:
    rounding.check("obq", WIDTH_LIMIT, "layers.0.mlp.down")
    rounding.check("gptq", 100 * WIDTH_LIMIT, "layers.0.mlp.down")
    message = rf"layers\.0\.mlp\.down is {WIDTH_LIMIT + 1} channels wide and the limit is {WIDTH_LIMIT}.*use gptq"
    with pytest.raises(InvalidSpec, match=message):
        rounding.check("obq", WIDTH_LIMIT + 1, "layers.0.mlp.down")


# --- Low-rank reconstructions, by a full decomposition ---------------------------------------------------------------


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ v[:rank]


def norm(rest: Tensor, moment: Tensor) -> float:
    return float(((rest @ moment) * rest).sum())


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_svd_is_the_truncated_decomposition_of_the_error(rank: int) -> None:
    problem, error = low_rank_problem("svd", rank)
    found = product("svd", problem)
    identity = torch.eye(64, dtype=torch.float64)
    best = norm(error - truncated(error, rank), identity)
    assert best <= norm(error - found, identity) <= 1.002 * best


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_lqer_is_the_truncated_decomposition_of_the_error_times_the_mean_magnitudes(rank: int) -> None:
    problem, error = low_rank_problem("lqer", rank)
    found = product("lqer", problem)
    scale = problem.mean_abs.double()
    formula = truncated(error * scale, rank) / scale
    best = norm(error - formula, torch.diag(scale**2))
    assert norm(error - found, torch.diag(scale**2)) <= 1.002 * best


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_the_shared_expert_is_the_optimum_in_the_whitened_norm(rank: int) -> None:
    problem, error = low_rank_problem("aser", rank)
    up, down = (part.double() for part in fit_shared(problem, error.float(), rank))
    moment = damped(problem)
    lower = torch.linalg.cholesky(moment)
    optimum = norm(error - truncated(error @ lower, rank) @ torch.linalg.inv(lower), moment)
    left = norm(error - up @ down, moment)
    # Eckart and Young: nothing of this rank is below the optimum.
    assert optimum * (1 - 1e-6) <= left <= 1.002 * optimum
    torch.testing.assert_close(product("aser", problem), up @ down, rtol=1e-4, atol=1e-6)
    source = generator(0, "perturbations")
    for size in (0.01, 0.1, 1.0):
        for _ in range(20):
            nudged = [
                part + size * part.std() * torch.randn(part.shape, generator=source, dtype=part.dtype)
                for part in (up, down)
            ]
            assert norm(error - nudged[0] @ nudged[1], moment) > optimum
    assert left < norm(error - truncated(error, rank), moment)


def low_rank_problem(method: str, rank: int) -> tuple[GroupProblem, Tensor]:
    """A problem and the error that rounding to nearest leaves, float64."""
    x, vision = mixture(600)
    problem = problem_of(x, vision, method=method, shared_rank=rank)
    return problem, (problem.weight - base_of(problem)).double()


def base_of(problem: GroupProblem) -> Tensor:
    return dequantize(*quantize(problem.weight, 4, problem.group_size), torch.float32)


def product(method: str, problem: GroupProblem) -> Tensor:
    adapters = reconstruction.get(method).reconstruct(problem, base_of(problem))
    assert adapters.shared_up is not None
    assert adapters.shared_down is not None
    return (adapters.shared_up @ adapters.shared_down).double()


# --- Searches for a scale, against every point of their grid ---------------------------------------------------------


def grid(problem: GroupProblem) -> dict[str, Tensor | None]:
    """AWQ's twenty scales by their exponent, written out: mean|x|^alpha over the root of its largest times smallest."""
    scales: dict[str, Tensor | None] = {"0": None}
    for step in range(1, 20):
        power = problem.mean_abs.double() ** (step / 20)
        scale = power / (power.max() * power.min()).sqrt()
        scales[f"{step / 20:g}"] = scale.to(torch.bfloat16).float()
    return scales


def absolute_error(problem: GroupProblem, scale: Tensor | None, tokens: Tensor) -> Tensor:
    """|W x - W_q Q(x/s)|, (tokens, out)."""
    scaled = problem.scaled(scale)
    rounded = dequantize(*quantize(scaled.weight, 4, problem.group_size, problem.scale_dtype), torch.float32)
    x = tokens if scale is None else tokens / scale
    output = round_tokens(x, problem.spec.bits.activation_bits) @ rounded.T
    return (output - tokens @ problem.weight.T).abs()


@pytest.mark.parametrize("scheme", ["W4A6", "W4A16"])
@pytest.mark.parametrize("seed", range(3))
def test_awq_is_the_best_of_its_grid_and_never_worse_than_round_to_nearest(seed: int, scheme: str) -> None:
    problem = problem_of(*mixture(400, seed=seed), method="awq", scheme=scheme, group_size=32)
    found = smoothing.get("awq").smooth(problem)
    lost = {
        alpha: float(absolute_error(problem, scale, problem.samples).square().sum())
        for alpha, scale in grid(problem).items()
    }
    chosen = found.label.removeprefix("awq(").removesuffix(")")
    assert lost[chosen] <= 1.0001 * min(lost.values())
    assert lost[chosen] <= lost["0"]
    torch.testing.assert_close(found.scale, grid(problem)[chosen], rtol=2**-7, atol=0.0)


def test_awq_takes_no_scale_where_none_helps() -> None:
    """Channels of one size leave nothing to protect: all scales of the grid are the same, and none is taken."""
    x = torch.where(torch.rand(300, 64, generator=generator(0, "signs")) > 0.5, 1.0, -1.0)
    found = smoothing.get("awq").smooth(problem_of(x, torch.zeros(300, dtype=torch.bool), method="awq"))
    assert found.scale is None
    assert found.label == "awq(0)"


@pytest.mark.parametrize("balance", [(1.0, 1.0), (0.1, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("only", [None, True, False])
def test_mbq_is_the_best_of_its_grid_for_the_weighted_absolute_error(
    balance: tuple[float, float], only: bool | None
) -> None:
    x, vision = mixture(400)
    if only is not None:
        vision = torch.full_like(vision, only)
    problem = problem_of(x, vision, method="mbq", modality_weights=ModalityWeights(*balance))
    found = smoothing.get("mbq").smooth(problem)

    def loss(scale: Tensor | None) -> float:
        error = absolute_error(problem, scale, problem.samples)
        kinds = [(balance[0], error[problem.vision]), (balance[1], error[~problem.vision])]
        counted = [weight * float(part.mean()) for weight, part in kinds if len(part)]
        return sum(counted) or float(error.mean())

    lost = {alpha: loss(scale) for alpha, scale in grid(problem).items()}
    assert lost[found.label.removeprefix("mbq(").removesuffix(")")] <= 1.0001 * min(lost.values())


def test_mbq_does_not_follow_a_few_extreme_tokens_as_awq_does() -> None:
    x, vision = mixture(400)
    x[:4, 40] = 300
    problem = problem_of(x, vision, method="mbq")
    lost = {alpha: absolute_error(problem, scale, problem.samples) for alpha, scale in grid(problem).items()}
    balanced = {
        alpha: float(error[problem.vision].mean() + error[~problem.vision].mean()) for alpha, error in lost.items()
    }
    squared = {alpha: float(error.square().sum()) for alpha, error in lost.items()}
    wanted = [f"{name}({min(by, key=by.__getitem__)})" for name, by in (("mbq", balanced), ("awq", squared))]
    found = [smoothing.get(name).smooth(problem).label for name in ("mbq", "awq")]
    assert found == wanted
    assert found[0][4:-1] != found[1][4:-1]


def test_mbq_with_no_weight_on_text_does_not_look_at_text_tokens() -> None:
    problem = problem_of(method="mbq", modality_weights=ModalityWeights(vision=1.0, text=0.0))
    noise = torch.randn(problem.samples.shape, generator=generator(0, "noise")) * 100
    others = replace(problem, samples=torch.where(problem.vision.unsqueeze(-1), problem.samples, noise))
    listening = replace(others, modality_weights=ModalityWeights(vision=0.0, text=1.0))
    find = smoothing.get("mbq").smooth
    assert find(others).label == find(problem).label
    assert find(listening).label != find(problem).label


def test_mbq_follows_the_modality_that_counts() -> None:
    """One channel is loud for vision and quiet for text tokens; protecting it costs the others."""
    source = torch.Generator().manual_seed(5)
    x = torch.randn(600, 64, generator=source)
    vision = torch.arange(600) % 2 == 0
    x[vision, :3] *= 40
    problem = problem_of(x, vision, method="mbq")
    lost = {}
    for kind, balance in (("vision", ModalityWeights(1, 0)), ("text", ModalityWeights(0, 1))):
        scale = smoothing.get("mbq").smooth(replace(problem, modality_weights=balance)).scale
        error = absolute_error(problem, scale, problem.samples)
        lost[kind] = (float(error[problem.vision].mean()), float(error[~problem.vision].mean()))
    assert lost["vision"][0] < lost["text"][0]
    assert lost["text"][1] < lost["vision"][1]
