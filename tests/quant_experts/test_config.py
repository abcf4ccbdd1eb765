"""One configuration object, from the command line to the recipe of a checkpoint."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from quant_experts.fit import reconstruction, rounding, smoothing
from quant_experts.spec.schemes import Scheme, parse_scheme
from quant_experts.spec.specification import PRESETS, QuantizationSpec


@pytest.mark.parametrize("method", PRESETS)
def test_a_preset_names_slots_that_exist_and_survives_json(method: str) -> None:
    spec = QuantizationSpec.preset(method, scheme="w3a16", seed=7)
    assert spec.smoothing in smoothing.names()
    assert spec.rounding in rounding.names()
    assert spec.reconstruction in reconstruction.names()
    assert spec.scheme == "W3A16"
    assert QuantizationSpec.model_validate_json(spec.model_dump_json()) == spec


def test_options_lie_over_the_preset() -> None:
    spec = QuantizationSpec.preset("qe-paper", experts=4)
    assert (spec.smoothing, spec.router, spec.lloyd_rounds, spec.experts) == ("outlier", "norm", 0, 4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scheme": "W9A8"}, "2 to 8"),
        ({"scheme": "W4A9"}, "4 to 8 bits or 16"),
        ({"scheme": "int4"}, "W4A6"),
        ({"rank": 3}, "rank"),
        ({"experts": -1}, "experts"),
        ({"group_size": 48}, "group_size"),
        ({"holdout": 1.0}, "holdout"),
    ],
)
def test_a_bad_option_is_refused_with_its_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        QuantizationSpec.preset("qe", **options)


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="qe-gptq"):
        QuantizationSpec.preset("magic")


def test_sixteen_bit_activations_are_not_quantized() -> None:
    assert parse_scheme("W4A16") == Scheme(4, 16)
    assert not Scheme(4, 16).quantizes_activations
    assert Scheme(4, 6).name == "W4A6"


@pytest.mark.parametrize("method", ["qe", "aser", "svd", "lqer"])
def test_a_reconstruction_without_any_expert_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"left without any expert: raise shared_rank"):
        QuantizationSpec.preset(method, shared_rank=0, experts=0)
    assert QuantizationSpec.preset("gptq", shared_rank=0, experts=0).reconstruction == "none"


def test_refinement_without_routed_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="refine trains routed experts, and experts is 0"):
        QuantizationSpec.preset("qe", experts=0, refine="routed")
