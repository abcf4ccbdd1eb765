"""The low-rank solve without a full decomposition is as good as the exact one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_experts.errors import NumericalFailure
from quant_experts.fit.linear_algebra import cholesky, damped_moment, low_rank, token_moment
from quant_experts.seeding import generator


def _problem(out: int, d: int, seed: int, decay: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An error matrix, a second moment whose spectrum falls as i^-decay, and the damped dense moment."""
    source = torch.Generator().manual_seed(seed)
    error = torch.randn(out, d, generator=source)
    directions = torch.linalg.qr(torch.randn(d, d, generator=source)).Q
    spectrum = torch.arange(1, d + 1).float().pow(-decay)
    moment = (directions * spectrum) @ directions.T * 1000
    dense = moment / 1000 + 0.01 * float(moment.diagonal().mean()) / 1000 * torch.eye(d)
    return error, moment, dense


def _left(error: torch.Tensor, dense: torch.Tensor, approximation: torch.Tensor) -> float:
    rest = (error - approximation).double()
    return float(((rest @ dense.double()) * rest).sum())


def _exact(error: torch.Tensor, dense: torch.Tensor, rank: int) -> float:
    """What the truncated SVD of E S leaves (Eckart-Young), S the Cholesky factor: step 4 as method.md writes it."""
    lower = torch.linalg.cholesky(dense.double())
    return float(torch.linalg.svdvals(error.double() @ lower)[rank:].square().sum())


@pytest.mark.parametrize("shape", [(96, 64), (40, 128), (128, 128)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
def test_subspace_iteration_leaves_what_the_exact_truncated_svd_leaves(shape: tuple[int, int], decay: float) -> None:
    error, moment, dense = _problem(*shape, seed=3, decay=decay)
    up, down = low_rank(error, damped_moment(moment, 1000, 0.01), 8, generator(0, "test"))
    assert up.shape == (shape[0], 8)
    assert down.shape == (8, shape[1])
    assert _left(error, dense, up @ down) <= _exact(error, dense, 8) * 1.002


def test_it_equals_the_formula_of_the_method() -> None:
    error, moment, dense = _problem(30, 20, seed=1, decay=1.5)
    up, down = low_rank(error, damped_moment(moment, 1000, 0.01), 5, generator(0, "test"))
    lower = torch.linalg.cholesky(dense.double())
    u, sigma, v = torch.linalg.svd(error.double() @ lower, full_matrices=False)
    formula = (u[:, :5] * sigma[:5]) @ torch.linalg.solve_triangular(lower.T, v[:5].T, upper=True).T
    torch.testing.assert_close((up @ down).double(), formula, rtol=1e-3, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), rank=st.integers(1, 6))
def test_no_other_matrix_of_that_rank_is_better_in_the_whitened_norm(seed: int, rank: int) -> None:
    error, moment, dense = _problem(24, 32, seed=seed, decay=1.0)
    up, down = low_rank(error, damped_moment(moment, 1000, 0.01), rank, generator(0, "test"))
    source = torch.Generator().manual_seed(seed + 1)
    nudge = [part + 0.05 * part.std() * torch.randn(part.shape, generator=source) for part in (up, down)]
    plain = torch.linalg.svd(error, full_matrices=False)
    rivals = [nudge[0] @ nudge[1], (plain.U[:, :rank] * plain.S[:rank]) @ plain.Vh[:rank]]
    assert all(_left(error, dense, up @ down) <= _left(error, dense, rival) * 1.0001 for rival in rivals)


def test_the_error_left_on_a_token_follows_from_the_down_projection_alone() -> None:
    error, moment, _ = _problem(24, 32, seed=0, decay=1.0)
    up, down = low_rank(error, damped_moment(moment, 1000, 0.01), 4, generator(0, "test"))
    x = torch.randn(10, 32)
    left = (x @ (error - up @ down).T).square().sum(-1)
    torch.testing.assert_close(
        left, (x @ error.T).square().sum(-1) - (x @ down.T).square().sum(-1), rtol=1e-3, atol=1e-3
    )


def test_a_weighted_moment_of_tokens_equals_the_formed_matrix() -> None:
    x, weight, v = torch.randn(20, 8), torch.rand(20), torch.randn(8, 3)
    weight[:5] = 0
    prior = torch.eye(8) * 3
    formed = ((x.T * weight) @ x + 0.5 * prior) / (weight.sum() + 0.5)
    torch.testing.assert_close(token_moment(x, weight, lambda u: prior @ u, 0.5)(v), formed @ v)


@pytest.mark.parametrize("shape", [(3, 50), (50, 3), (1, 1)])
def test_a_rank_beyond_the_matrix_gives_the_whole_matrix(shape: tuple[int, int]) -> None:
    error = torch.randn(*shape)
    up, down = low_rank(error, lambda v: v, 9, generator(0, "test"))
    torch.testing.assert_close(up @ down, error, rtol=1e-4, atol=1e-4)


def test_nothing_to_correct_gives_nothing() -> None:
    up, down = low_rank(torch.zeros(8, 6), lambda v: v, 2, generator(0, "test"))
    assert torch.equal(up @ down, torch.zeros(8, 6))
    assert bool(torch.isfinite(up).all())


def test_a_singular_moment_is_factorised_after_damping() -> None:
    x = torch.randn(2, 16)
    lower = cholesky("g", x.T @ x, 2, 0.01)
    assert lower.dtype == torch.float64
    assert bool(torch.isfinite(lower).all())


def test_a_moment_that_is_not_positive_names_the_group() -> None:
    moment = torch.eye(4)
    moment[0, 0] = -100.0
    with pytest.raises(NumericalFailure, match=r"input group layer.3.qkv: the second moment .* not positive definite"):
        cholesky("layer.3.qkv", moment, 1, 0.01)
