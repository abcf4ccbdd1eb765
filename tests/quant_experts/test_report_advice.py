"""Advice for an input group follows from its figures, and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from quant_experts.report.charts.advice import Advice, Context, advice, grouped
from quant_experts.report.data import ChannelStatistics, GroupReport, GroupSensitivity, MixedPrecision, StageErrors


def group(**changes: Any) -> GroupReport:
    """One about which nothing is to be said."""
    values: dict[str, Any] = {
        "name": "model.layers.0.mlp.down", "block": 0, "layers": ["down_proj"], "tokens": 10,
        "error": StageErrors(base=0.04, shared=0.02, routed=0.017), "error_rtn": 0.03, "sqnr_db": 20.0,
        "expert_usage": [0.25] * 4, "smoothing": "outlier", "effective_bits": 6.0, "weight_bits": 4,
    }  # fmt: skip
    return GroupReport(**{**values, **changes})


def stages(error: float) -> StageErrors:
    return StageErrors(base=error, shared=error, routed=error)


def channels(**changes: Any) -> ChannelStatistics:
    return ChannelStatistics(independent=1, dependent=1, curve=[], **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ["No single cause", "--sensitive-groups layers.0.mlp.down"]),
        ({"weight_bits": 8}, ["It is at 8 bits already."]),
        ({"error_rtn": 0.01}, ["Rounding alone loses less (1.00 % against 1.70 %)", "--samples 256"]),
        (
            {"sensitivity": GroupSensitivity(mean_abs=1, variance=1, kl=0.5)},
            ["Number 1 of 3 in sensitivity (KL 0.500", "--sensitive-groups layers.0.mlp.down"],
        ),
        ({"error_vision": stages(0.06), "error_text": stages(0.02)}, ["Vision tokens lose 3.0 times", "images"]),
        ({"error_vision": stages(0.02), "error_text": stages(0.06)}, ["Text tokens lose 3.0 times"]),
        ({"channels": channels(split_half=0.61)}, ["rank correlation 0.61", "--samples 256"]),
        ({"channels": channels(unseen_share=0.07)}, ["7.00 % of held-out tokens"]),
        ({"expert_usage": [0.5, 0.5, 0.0, 0.0]}, ["2 of 4 experts get no token", "--experts 2"]),
        (
            {"error": StageErrors(base=0.04, shared=0.02, routed=0.0199)},
            ["remove only 0.500 % of what the shared expert leaves", "--experts 2"],
        ),
        ({"smoothing": "smoothquant(0.75)"}, ["--smoothing smoothquant --smoothquant-alpha 0.9"]),
        ({"error_bf16": 0.01}, ["int8 cost 70.0 % more error", "--adapter-dtype bf16"]),
        (
            {"error": StageErrors(base=0.04, shared=0.04, routed=0.02)},
            ["they remove 50.0 % of what the shared expert leaves", "--routed-rank 64"],
        ),
    ],
)
def test_advice_follows_from_the_figures(changes: dict[str, Any], said: Sequence[str]) -> None:
    context = Context(128, routed_rank=32, kls=[0.5, 0.1, 0.01], median_error=0.01, mixed=None, bits=6.0)
    text = " ".join(one.reason for one in advice(group(**changes), context))
    for part in said:
        assert part in text
    if changes and changes != {"weight_bits": 8}:
        assert "No single cause" not in text


@pytest.mark.parametrize(
    ("decided_by", "names", "said"),
    [
        ("names", ["model.layers.1.mlp.down"], "Keep it at 6 bits too: add --sensitive-groups layers.0.mlp.down."),
        ("names", ["model.layers.0.mlp.down"], "It is at 6 bits: --sensitive-bits 8"),
        ("share", ["model.layers.1.mlp.down"], "--sensitive-share 0.2."),
        ("budget", ["model.layers.1.mlp.down"], "--bits-per-weight 6.5."),
    ],
)
def test_advice_on_more_bits_speaks_the_option_that_the_run_used(decided_by: Any, names: list[str], said: str) -> None:
    mixed = MixedPrecision(weight_bits=6, groups=names, share=0.1, decided_by=decided_by)
    context = Context(128, routed_rank=32, kls=[], median_error=0.01, mixed=mixed, bits=6.0)
    assert said in advice(group(), context)[0].reason


def test_a_group_gets_at_most_three_sentences() -> None:
    context = Context(128, routed_rank=32, kls=[], median_error=0.01, mixed=None, bits=6.0)
    ill = group(
        error_rtn=0.001, channels=channels(split_half=0.1, unseen_share=0.9), expert_usage=[1.0, 0.0],
        smoothing="smoothquant(0.75)", error_bf16=0.001,
    )  # fmt: skip
    assert len(advice(ill, context)) == 3


def test_each_action_is_listed_once_with_the_groups_it_is_for() -> None:
    listed = grouped(
        [
            ("a", [Advice("More rows", "halves of a disagree"), Advice("More rows", "a is unseen")]),
            ("b", [Advice("More bits", "b is sensitive"), Advice("More rows", "halves of b disagree")]),
        ]
    )
    assert [(one.action, one.groups, one.reason) for one in listed] == [
        ("More rows", ["a", "b"], "halves of a disagree"),
        ("More bits", ["b"], "b is sensitive"),
    ]
