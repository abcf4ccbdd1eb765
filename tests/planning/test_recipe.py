"""Defaults and presets of the planner are the library's."""

from __future__ import annotations

import dataclasses

import pytest

from quant_experts.calibration import collate, image_variants
from quant_experts.evaluation import next_token as evaluation
from quant_experts.fit.rounding import descent, obq
from quant_experts.fit.smoothing import _trial, search
from quant_experts.planning import disk, memory, recipe, row_tokens, seconds
from quant_experts.planning.recipe import Recipe
from quant_experts.search import search as auto_search
from quant_experts.sensitivity import rows as sensitivity_rows
from quant_experts.spec.specification import PRESETS, QuantizationSpec
from quant_experts.walk import observe


@pytest.mark.parametrize("method", PRESETS)
def test_a_recipe_is_the_spec_of_its_preset(method: str) -> None:
    spec = QuantizationSpec.preset(method).model_dump()
    planned = dataclasses.asdict(Recipe.of(method))
    assert (planned.pop("exports"), planned.pop("evaluation")) == ((), None)
    assert planned == {name: spec[name] for name in planned}


def test_what_was_not_given_keeps_its_default() -> None:
    assert Recipe.of("qe", experts=None, labels={}) == Recipe.of("qe")
    assert Recipe.of("qe", experts=2).experts == 2


def test_the_constants_that_sizes_memory_and_time_follow_are_those_of_the_library() -> None:
    assert recipe.OBQ_WIDTH == obq.WIDTH_LIMIT
    assert seconds.SWEEPS == descent.SWEEPS
    assert row_tokens.MOST_TOKENS == collate.MOST_TOKENS
    assert memory.HELD_OUT_TOKENS == observe.HELD_OUT_TOKENS
    assert disk.VARIED_ROWS == image_variants.MOST_ROWS
    assert seconds.VARIANTS == disk.VARIANTS_EACH * disk.VARIED_ROWS
    assert (disk.FEW_ROWS, disk.FEW_TOKENS) == (sensitivity_rows.ROWS, sensitivity_rows.TOKENS)
    assert (disk.TRIAL_FIT, disk.TRIAL_HELD) == (auto_search.FIT_ROWS, auto_search.HELD_OUT_ROWS)
    assert memory.LOGIT_CHUNK == evaluation.CHUNK
    assert seconds.SUBSAMPLE == _trial.SUBSAMPLE
    assert seconds.TRIALS["awq"] == seconds.TRIALS["mbq"] == _trial.GRID
    assert seconds.TRIALS["search"] == 3 + len(search.ALPHAS)
