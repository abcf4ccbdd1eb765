"""A whole group, from statistics to stored values, from easy and from hard input."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from quant_experts.errors import InvalidSpec, NumericalFailure
from quant_experts.fit.fit_group import FittedGroup, GroupErrors, evaluate_group, fit_group
from quant_experts.spec.specification import PRESETS, QuantizationSpec
from tests.quant_experts.tokens import WIDTH, mixture, observe, spec, weights


def _fit(
    chosen: QuantizationSpec,
    x: torch.Tensor | None = None,
    layers: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> FittedGroup:
    tokens, vision = mixture(800) if x is None else (x, torch.arange(x.shape[0]) % 2 == 0)
    layers = layers or weights()
    return fit_group("block.attn.qkv", layers, observe(tokens, vision, layers, chosen), chosen, scale_dtype=dtype)


def _held_out(fitted: FittedGroup, layers: dict[str, torch.Tensor] | None = None) -> GroupErrors:
    x, vision = mixture(400, seed=99)
    return evaluate_group(fitted, layers or weights(), x, vision)


def _floats(fitted: FittedGroup) -> list[torch.Tensor]:
    values = [getattr(fitted, field.name) for field in fields(fitted)]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in flat if isinstance(part, torch.Tensor) and part.is_floating_point()]


def test_methods_come_in_the_published_order_on_held_out_tokens() -> None:
    """At equal active rank: 8 for ASER, 4 + 4 for Quant Experts."""
    error = {
        "rtn": _held_out(_fit(spec("rtn", scheme="W4A8"))).error.routed,
        "aser": _held_out(_fit(spec("aser", scheme="W4A8", shared_rank=8))).error.routed,
        "qe": _held_out(_fit(spec("qe", scheme="W4A8"))).error.routed,
    }
    assert error["qe"] < error["aser"] < error["rtn"]


def test_each_stage_lowers_the_error_and_usage_sums_to_one() -> None:
    errors = _held_out(_fit(spec("qe")))
    assert errors.error.routed < errors.error.shared < errors.error.base
    assert sum(errors.expert_usage) == pytest.approx(1.0)
    assert min(errors.expert_usage) > 0.05
    assert errors.tokens == 400
    assert errors.error_vision is not None
    assert errors.error_text is not None
    assert 10 ** (-errors.sqnr_db / 10) == pytest.approx(errors.error.routed, rel=1e-6)


@pytest.mark.parametrize("method", sorted(PRESETS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_preset_fits_with_the_shapes_that_the_checkpoint_expects(method: str, dtype: torch.dtype) -> None:
    fitted = _fit(spec(method, group_size=32), dtype=dtype)
    assert fitted.layers == ("q", "k")
    assert [codes.shape for codes in fitted.codes] == [(48, WIDTH), (16, WIDTH)]
    assert [scales.shape for scales in fitted.scales] == [(48, 2), (16, 2)]
    if fitted.shared_down is not None:
        assert fitted.shared_down.shape == (4, WIDTH)
        assert [up.shape for up in fitted.shared_up] == [(48, 4), (16, 4)]
    if fitted.routed_down is not None:
        assert fitted.routed_down.shape == (4, 4, WIDTH)
        assert [up.shape for up in fitted.routed_up] == [(4, 48, 4), (4, 16, 4)]
        assert fitted.router is not None
        assert fitted.router.shape == (4, WIDTH)
    assert fitted.warnings == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_values_are_stored_without_loss(dtype: torch.dtype) -> None:
    fitted = _fit(spec("qe"), dtype=dtype)
    assert all(torch.equal(part, part.to(dtype).float()) for part in _floats(fitted))


def test_a_second_fit_is_bit_identical_whatever_the_running_generator() -> None:
    torch.manual_seed(1)
    first = _fit(spec("qe-gptq"))
    torch.manual_seed(2)
    second = _fit(spec("qe-gptq"))
    assert all(torch.equal(a, b) for a, b in zip(_floats(first), _floats(second), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.codes, second.codes, strict=True))


def test_exempt_columns_are_zero_in_the_base_only_for_quant_experts() -> None:
    def zero_columns(method: str, **options: object) -> int:
        codes = torch.cat(_fit(spec(method, **options)).codes)
        return int((codes == 0).all(0).sum())

    assert zero_columns("qe", smoothing="outlier") == 4
    assert zero_columns("qe", smoothing="outlier", exempt=False) == 0
    assert zero_columns("qe", smoothing="rotation") == 0
    assert zero_columns("aser") == 0
    assert zero_columns("rtn", smoothing="outlier") == 0


def test_either_kind_of_expert_can_be_left_out_and_adds_to_the_other() -> None:
    both = _fit(spec("qe"))
    shared_only = _fit(spec("qe", experts=0))
    routed_only = _fit(spec("qe", shared_rank=0))
    assert shared_only.routed_down is shared_only.router is None
    assert shared_only.routed_up == ()
    assert routed_only.shared_down is None
    assert routed_only.shared_up == ()
    assert int((torch.cat(routed_only.codes) == 0).all(0).sum()) == 0  # no column is exempt without a shared expert
    left = [_held_out(fitted).error for fitted in (both, shared_only, routed_only)]
    assert left[1].routed == left[1].shared < left[1].base
    assert left[2].routed < left[2].shared == left[2].base
    assert left[0].routed < min(left[1].routed, left[2].routed)


def test_sixteen_bit_activations_leave_only_the_weight_error() -> None:
    a6 = _held_out(_fit(spec("rtn", scheme="W4A6"))).error.base
    a16 = _held_out(_fit(spec("rtn", scheme="W4A16"))).error.base
    assert 0 < a16 < a6


@pytest.fixture
def short_refinement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the sixteen epochs, with small batches."""
    monkeypatch.setattr("quant_experts.fit.experts.refine.EPOCHS", 2)
    monkeypatch.setattr("quant_experts.fit.experts.refine.BATCH", 64)


def _refined(scope: str, tokens: int) -> FittedGroup:
    return _fit(spec("qe-paper", scheme="W3A16", refine=scope), mixture(tokens)[0], dtype=torch.float32)


@pytest.mark.usefixtures("short_refinement")
def test_refinement_lowers_the_held_out_error_and_trains_the_shared_expert_only_when_asked() -> None:
    plain, routed, everything = (_refined(scope, 3000) for scope in ("none", "routed", "all"))
    assert _held_out(routed).error.routed < 0.998 * _held_out(plain).error.routed
    assert _held_out(everything).error.routed < 0.998 * _held_out(routed).error.routed
    products = [fitted.shared_up[0] @ fitted.shared_down for fitted in (plain, routed, everything)]
    torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-6)
    assert float((products[0] - products[2]).abs().max()) > 1e-4


@pytest.mark.usefixtures("short_refinement")
def test_refinement_that_only_learns_its_tokens_by_heart_is_thrown_away_with_a_warning() -> None:
    plain, refined = (_refined(scope, 300) for scope in ("none", "routed"))
    assert "refinement did not lower the error on held-back tokens" in refined.warnings[0]
    assert all(torch.equal(a, b) for a, b in zip(_floats(plain), _floats(refined), strict=True))


@pytest.mark.usefixtures("short_refinement")
def test_routed_experts_are_refined_without_a_shared_one_too() -> None:
    plain, refined = (
        _fit(spec("qe-paper", scheme="W3A16", shared_rank=0, refine=scope), mixture(3000)[0], dtype=torch.float32)
        for scope in ("none", "all")
    )
    assert refined.shared_down is None
    assert _held_out(refined).error.routed < 0.998 * _held_out(plain).error.routed


@pytest.mark.usefixtures("short_refinement")
def test_refined_fits_are_bit_identical_too() -> None:
    torch.manual_seed(1)
    first = _refined("all", 3000)
    torch.manual_seed(2)
    second = _refined("all", 3000)
    assert first.warnings == ()
    assert all(torch.equal(a, b) for a, b in zip(_floats(first), _floats(second), strict=True))


# Options that do not fit the layer, weights that cannot be used.


def test_a_rank_beyond_the_layer_is_clamped_and_the_group_is_then_exact_but_for_activations() -> None:
    fitted = _fit(spec("qe", scheme="W4A16", shared_rank=500, routed_rank=500), dtype=torch.float32)
    assert [warning.split(";")[1] for warning in fitted.warnings] == [" clamped to 64", " clamped to 64"]
    assert _held_out(fitted).error.shared < 1e-6


def test_more_important_channels_than_half_the_width_are_clamped_with_a_warning() -> None:
    fitted = _fit(spec("qe", important_channels=60))
    assert "important_channels 60 is over half of 64; clamped to 32" in fitted.warnings[0]


def test_the_default_group_size_falls_back_to_the_row_with_a_warning() -> None:
    narrow = {"q": weights()["q"][:, :48]}
    x = mixture(200)[0][:, :48]
    fitted = _fit(spec("rtn", group_size="auto"), x, narrow)
    assert fitted.group_size == 48
    assert "group size 128 or 64 or 32 does not divide the input width 48; one scale per row used" in fitted.warnings[0]


def test_a_group_size_that_was_asked_for_and_does_not_divide_is_refused() -> None:
    narrow = {"q": weights()["q"][:, :48]}
    with pytest.raises(InvalidSpec, match="group size 32 does not divide the input width 48"):
        _fit(spec("rtn", group_size=32), mixture(200)[0][:, :48], narrow)


def test_a_weight_that_is_not_finite_names_group_and_layer() -> None:
    layers = weights()
    observation = observe(*mixture(50), layers, spec())
    layers["k"][2, 3] = float("nan")
    with pytest.raises(NumericalFailure, match=r"block.attn.qkv: the weight of k holds 1 values that are not finite"):
        fit_group("block.attn.qkv", layers, observation, spec())


def test_half_precision_weights_and_tokens_give_the_same_errors() -> None:
    layers = {name: w.bfloat16() for name, w in weights().items()}
    x, vision = mixture(800)
    chosen = spec("qe")
    fitted = fit_group("g", layers, observe(x.bfloat16(), vision, layers, chosen), chosen)
    held, held_vision = mixture(400, seed=99)
    half = evaluate_group(fitted, layers, held.bfloat16(), held_vision).error.routed
    assert half == pytest.approx(_held_out(_fit(chosen)).error.routed, rel=0.15)
