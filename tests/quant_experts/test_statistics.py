"""One streaming pass gives the statistics that holding all tokens would give."""

from __future__ import annotations

import pytest
import torch

from quant_experts.errors import NumericalFailure
from quant_experts.fit.statistics import (
    GroupStatistics,
    Observation,
    TokenReservoir,
    channel_importance,
    important_channels,
)
from tests.quant_experts.tokens import mixture, weights


def _observe(parts: list[tuple[torch.Tensor, torch.Tensor]], *, seed: int = 0, reservoir: int = 64) -> Observation:
    stacked = torch.cat(list(weights().values()))
    statistics = GroupStatistics(
        "g",
        stacked.shape[1],
        channel_importance(stacked),
        important_channels=4,
        reservoir=reservoir,
        seed=seed,
        device="cpu",
    )
    for x, vision in parts:
        statistics.update(x, vision)
    return statistics.finish()


def test_streamed_sums_equal_the_sums_over_all_tokens() -> None:
    x, vision = mixture(500)
    seen = _observe([(x[:100], vision[:100]), (x[100:], vision[100:])])
    assert seen.tokens == 500
    assert seen.tokens_vision == int(vision.sum())
    torch.testing.assert_close(seen.second_moment, x.T @ x, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(seen.mean_abs, x.abs().mean(0))
    torch.testing.assert_close(seen.max_abs, x.abs().amax(0))


def test_each_token_counts_its_k_most_important_channels_by_modality() -> None:
    x, vision = mixture(300)
    seen = _observe([(x, vision)])
    score = x.abs() * channel_importance(torch.cat(list(weights().values())))
    chosen = torch.zeros_like(score, dtype=torch.bool)
    for token, row in enumerate(score):
        chosen[token, sorted(range(len(row)), key=lambda c, row=row: -float(row[c]))[:4]] = True
    assert torch.equal(seen.counts, chosen.sum(0))
    assert torch.equal(seen.counts_vision, chosen[vision].sum(0))
    assert torch.equal(seen.counts_text, chosen[~vision].sum(0))


def test_the_first_half_of_the_rows_is_counted_apart() -> None:
    x, vision = mixture(300)
    stacked = torch.cat(list(weights().values()))
    statistics = GroupStatistics(
        "g", 64, channel_importance(stacked), important_channels=4, reservoir=64, seed=0, device="cpu"
    )
    for start in range(0, 300, 50):
        part = slice(start, start + 50)
        statistics.update(x[part], vision[part], first_half=start % 100 == 0)
    seen = statistics.finish()
    first = torch.cat([x[start : start + 50] for start in range(0, 300, 100)])
    assert torch.equal(seen.counts_first_half, important_channels(first, channel_importance(stacked), 4).sum(0))
    assert torch.equal(seen.counts, important_channels(x, channel_importance(stacked), 4).sum(0))


def test_a_channel_that_contributes_nothing_is_never_important() -> None:
    x = torch.zeros(2, 8)
    x[0, 3] = 1.0
    mask = important_channels(x, torch.ones(8), 4)
    assert mask.sum().item() == 1
    assert mask[0, 3]


def test_same_seed_and_name_keep_the_same_tokens_and_another_seed_keeps_others() -> None:
    x, vision = mixture(1000)
    parts = [(x[i : i + 130], vision[i : i + 130]) for i in range(0, 1000, 130)]
    torch.manual_seed(1)
    first = _observe(parts)
    torch.manual_seed(2)
    again = _observe(parts)
    other = _observe(parts, seed=5)
    assert torch.equal(first.tokens_kept, again.tokens_kept)
    assert not torch.equal(first.tokens_kept, other.tokens_kept)


def test_the_reservoir_holds_real_tokens_in_order_of_arrival_with_their_modality() -> None:
    x, vision = mixture(400)
    x[:, 0] = torch.arange(400)
    kept, kept_vision = _reservoir(x, vision, capacity=50, step=37)
    index = kept[:, 0].long()
    assert torch.equal(index, index.sort().values)
    assert len(index.unique()) == 50
    assert torch.equal(kept, x[index])
    assert torch.equal(kept_vision, vision[index])


def test_every_token_is_as_likely_to_stay_as_any_other() -> None:
    x = torch.arange(100.0).unsqueeze(1)
    stayed = torch.zeros(100)
    for seed in range(300):
        kept, _ = _reservoir(x, torch.zeros(100, dtype=torch.bool), capacity=20, step=30, seed=seed)
        stayed[kept[:, 0].long()] += 1
    # 300 draws at 0.2: mean 60, standard deviation 6.9. Early and late thirds must not differ.
    assert 54 < float(stayed[:33].mean()) < 66
    assert 54 < float(stayed[-33:].mean()) < 66


def test_the_rare_modality_gets_at_least_a_quarter_of_the_reservoir() -> None:
    x = torch.randn(1000, 4)
    vision = torch.ones(1000, dtype=torch.bool)
    vision[::20] = False
    _, kept_vision = _reservoir(x, vision, capacity=100, step=250)
    assert int((~kept_vision).sum()) == 25
    assert len(kept_vision) == 100


def test_few_tokens_are_all_kept_in_their_own_dtype() -> None:
    x = torch.randn(7, 4, dtype=torch.bfloat16)
    kept, _ = _reservoir(x, torch.arange(7) % 2 == 0, capacity=100, step=3)
    assert kept.dtype == torch.bfloat16
    assert torch.equal(kept, x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_names_the_group(value: float) -> None:
    x, vision = mixture(10)
    x[3, 5] = value
    with pytest.raises(NumericalFailure, match="input group g: 1 of 640 input values are not finite"):
        _observe([(x, vision)])


def test_an_overflowing_second_moment_names_the_group() -> None:
    x, vision = mixture(10)
    with pytest.raises(NumericalFailure, match="input group g: the second moment of its inputs overflows"):
        _observe([(x * 1e25, vision)])


def test_no_token_at_all_is_an_error() -> None:
    with pytest.raises(NumericalFailure, match="no calibration token reached it"):
        _observe([])


def _reservoir(
    x: torch.Tensor, vision: torch.Tensor, *, capacity: int, step: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    reservoir = TokenReservoir(capacity, seed=seed, name="g")
    for begin in range(0, x.shape[0], step):
        reservoir.update(x[begin : begin + step], vision[begin : begin + step])
    return reservoir.finish()
