"""What the report says about a group's channels is what the tokens say."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from quant_experts.fit.channel_statistics import describe_channels, frequency_curve, rank_correlation
from quant_experts.fit.statistics import GroupStatistics, Observation, channel_importance
from quant_experts.spec.ranks import Ranks
from tests.quant_experts.tokens import mixture, spec, weights

SPEC = spec("qe")
RANKS = Ranks(shared=4, routed=4, experts=4)


def _observe(*halves: torch.Tensor) -> Observation:
    importance = channel_importance(torch.cat(list(weights().values())))
    statistics = GroupStatistics(
        "g", 64, importance, important_channels=SPEC.important_channels, reservoir=64, seed=0, device="cpu"
    )
    for i, x in enumerate(halves):
        statistics.update(x, torch.zeros(len(x), dtype=torch.bool), first_half=i == 0)
    return statistics.finish()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=40))
def test_the_rank_correlation_is_spearmans_ties_included(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(values) for values in zip(*pairs, strict=True))
    found = rank_correlation(a, b)
    if len(a.unique()) == 1 or len(b.unique()) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_halves_of_the_same_kind_agree_and_halves_of_different_kinds_do_not() -> None:
    x, vision = mixture(4000)
    importance = channel_importance(torch.cat(list(weights().values())))
    alike = describe_channels(_observe(x[::2], x[1::2]), importance, x, SPEC, RANKS).split_half
    apart = describe_channels(_observe(x[vision], x[~vision]), importance, x, SPEC, RANKS).split_half
    assert alike is not None
    assert apart is not None
    assert alike > 0.9
    assert apart < 0.6
    assert describe_channels(_observe(x), importance, x, SPEC, RANKS).split_half is None


def test_a_held_out_token_with_a_new_important_channel_is_unseen() -> None:
    importance = torch.ones(64)
    seen = torch.zeros(50, 64)
    seen[:, :8] = 1 + torch.rand(50, 8)
    held_out = torch.zeros(10, 64)
    held_out[:, 0] = 5
    held_out[:3, 40] = 5
    assert describe_channels(_observe(seen), importance, held_out, SPEC, RANKS).unseen_share == pytest.approx(0.3)
    assert describe_channels(_observe(seen), importance, held_out[:0], SPEC, RANKS).unseen_share is None


def test_the_curve_falls_from_the_first_channel_to_the_last_in_at_most_64_points() -> None:
    counts = torch.randint(0, 1000, (1536,), generator=torch.Generator().manual_seed(0))
    curve = frequency_curve(counts, 1000)
    assert 32 < len(curve) <= 64
    assert (curve[0].rank, curve[-1].rank) == (1, 1536)
    assert curve[0].share == int(counts.max()) / 1000
    assert curve[-1].share == int(counts.min()) / 1000
    assert [point.share for point in curve] == sorted((point.share for point in curve), reverse=True)
    ratios = [after.rank / before.rank for before, after in itertools.pairwise(curve[20:])]
    assert max(ratios) < 1.3


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65])
def test_a_narrow_group_has_every_channel_at_most_once_on_its_curve(width: int) -> None:
    ranks = [point.rank for point in frequency_curve(torch.arange(width), 100)]
    assert ranks == sorted(set(ranks))
    assert (ranks[0], ranks[-1]) == (1, width)


def test_the_counts_are_those_of_the_partition_that_is_fitted() -> None:
    x, _ = mixture(500)
    found = describe_channels(_observe(x), channel_importance(torch.cat(list(weights().values()))), x, SPEC, RANKS)
    assert found.independent == 4
    assert 0 < found.dependent <= 4 * RANKS.experts
