"""Input that nothing can be learnt from: every method finishes with a warning or refuses by name, never with a NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quant_experts.errors import InvalidCalibration, NumericalFailure
from quant_experts.fit.fit_group import FittedGroup, evaluate_group, fit_group
from quant_experts.report.data import QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import PRESETS, QuantizationSpec
from tests.models import make_model
from tests.quant_experts.tokens import WIDTH, mixture, observe, spec, weights
from tests.rows import image_row, text_row, write_rows

Layers = dict[str, Tensor]


@pytest.fixture(autouse=True)
def no_silent_warning() -> Iterator[None]:
    """numpy and scikit-learn say when they divide by zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("error", UserWarning)
        yield


def _one_token() -> tuple[Tensor, Layers]:
    return mixture(1)[0], weights()


def _identical_tokens() -> tuple[Tensor, Layers]:
    return mixture(1)[0].repeat(50, 1), weights()


def _a_constant_and_dead_channels() -> tuple[Tensor, Layers]:
    x, _ = mixture(300)
    x[:, 7] = 50.0
    x[:, 30:40] = 0
    return x, weights()


def _zero_inputs() -> tuple[Tensor, Layers]:
    return torch.zeros(50, WIDTH), weights()


def _a_zero_group() -> tuple[Tensor, Layers]:
    return mixture(100)[0], {name: torch.zeros_like(w) for name, w in weights().items()}


def _a_zero_layer() -> tuple[Tensor, Layers]:
    return mixture(100)[0], {**weights(), "k": torch.zeros(16, WIDTH)}


def _few_live_channels() -> tuple[Tensor, Layers]:
    """Four channels are token-independent; two are left for four experts."""
    x = torch.zeros(100, WIDTH)
    x[:, :6] = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    return x, weights()


def _fewer_channels_than_k() -> tuple[Tensor, Layers]:
    return mixture(200)[0][:, :3].contiguous(), {name: w[:, :3].contiguous() for name, w in weights().items()}


SAID: dict[Callable[[], tuple[Tensor, Layers]], str] = {
    _one_token: "only one calibration token reached it",
    _identical_tokens: "all 50 tokens looked at have the same input",
    _a_constant_and_dead_channels: "11 of 64 input channels are the same for all calibration tokens",
    _zero_inputs: "the inputs of all 50 calibration tokens are zero",
    _a_zero_group: "the weights of q, k are all zero",
    _a_zero_layer: "the weights of k are all zero",
    _few_live_channels: "58 of 64 input channels are the same",
    _fewer_channels_than_k: "important_channels 4 is over half of 3",
}


def _fit(chosen: QuantizationSpec, x: Tensor, vision: Tensor, layers: Layers, dtype: torch.dtype) -> FittedGroup:
    return fit_group("block.attn.qkv", layers, observe(x, vision, layers, chosen), chosen, scale_dtype=dtype)


def _assert_sound(fitted: FittedGroup, x: Tensor, layers: Layers) -> None:
    values = [getattr(fitted, field.name) for field in fields(fitted)]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    assert all(bool(torch.isfinite(part).all()) for part in flat if isinstance(part, Tensor))
    errors = evaluate_group(fitted, layers, x, torch.zeros(x.shape[0], dtype=torch.bool))
    # Against no output at all, which would be 1. NaN compares false.
    assert 0 <= errors.error.routed < 0.05


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("case", SAID, ids=lambda case: case.__name__.strip("_"))
def test_every_method_finishes_and_says_what_was_missing(
    case: Callable[[], tuple[Tensor, Layers]], method: str
) -> None:
    x, layers = case()
    fitted = _fit(spec(method), x, torch.arange(x.shape[0]) % 2 == 0, layers, torch.bfloat16)
    _assert_sound(fitted, x, layers)
    assert SAID[case] in "\n".join(fitted.warnings)


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("vision", [True, False])
def test_one_modality_alone_is_enough(method: str, vision: bool) -> None:
    x, layers = mixture(300)[0], weights()
    fitted = _fit(spec(method), x, torch.full((300,), vision), layers, torch.bfloat16)
    _assert_sound(fitted, x, layers)
    assert fitted.warnings == ()


def test_a_group_of_zeros_stays_zero() -> None:
    x, layers = _a_zero_group()
    fitted = _fit(spec("qe"), x, torch.zeros(100, dtype=torch.bool), layers, torch.bfloat16)
    errors = evaluate_group(fitted, layers, x, torch.zeros(100, dtype=torch.bool))
    assert errors.error.routed == 0.0
    assert errors.sqnr_db == 200.0


def test_fewer_dependent_channels_than_experts_fits_fewer_and_says_so() -> None:
    x, layers = _few_live_channels()
    fitted = _fit(spec("qe"), x, torch.zeros(100, dtype=torch.bool), layers, torch.bfloat16)
    assert fitted.router is not None
    assert fitted.router.shape[0] == 2
    assert "block.attn.qkv: 2 token-dependent channels are too few for 4 experts; 2 fitted" in fitted.warnings


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("size", [1e-30, 1e15])
def test_inputs_of_any_size_that_float32_holds_are_the_same_problem(method: str, size: float) -> None:
    x, vision = mixture(300)
    _assert_sound(_fit(spec(method), x * size, vision, weights(), torch.bfloat16), x * size, weights())


@pytest.mark.parametrize("method", PRESETS)
def test_weights_too_large_for_the_stored_scale_are_refused_with_the_group(method: str) -> None:
    x, vision = mixture(100)
    layers = {name: w * 1e9 for name, w in weights().items()}
    with pytest.raises(NumericalFailure, match=r"block\.attn\.qkv: 64 weight scales are too large for torch\.float16"):
        _fit(spec(method), x, vision, layers, torch.float16)


# --- Through a whole run -------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"samples": 8, "experts": 3, "shared_rank": 4, "routed_rank": 4, "important_channels": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("degenerate") / "model", blocks=1)


def _run(directory: Path, model: Path, rows: list[Any], method: str) -> QualityReport:
    return quantize(
        model=model,
        calibration=write_rows(directory / "rows.jsonl", rows),
        output=directory / "out",
        work=directory / "work",
        spec=QuantizationSpec.preset(method, **OPTIONS),
    )


def _assert_sane(report: QualityReport) -> None:
    assert 0 <= report.quality.kl < 0.1
    assert 0 < report.quality.perplexity_quantized < 10 * report.quality.perplexity_full
    assert all(0 <= group.error.routed < 0.1 for block in report.blocks for group in block.groups)


@pytest.mark.parametrize("count", [1, 2])
def test_rows_that_leave_none_to_fit_are_refused(count: int, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidCalibration, match=f"{count} calibration rows, of which 2 are held out"):
        _run(tmp_path, model, [image_row(i) for i in range(count)], "qe")


def test_three_rows_are_enough_for_a_checkpoint(model: Path, tmp_path: Path) -> None:
    report = _run(tmp_path, model, [image_row(i) for i in range(3)], "qe-gptq")
    assert report.rows_used == 1
    _assert_sane(report)


def test_identical_rows_give_a_checkpoint(model: Path, tmp_path: Path) -> None:
    report = _run(tmp_path, model, [image_row(0)] * 6, "qe")
    assert report.rows_used == 4
    _assert_sane(report)


@pytest.mark.parametrize("method", ["qe", "mbq"])
def test_text_rows_alone_quantize_a_vision_model_with_a_warning(method: str, model: Path, tmp_path: Path) -> None:
    report = _run(tmp_path, model, [text_row(i) for i in range(4)], method)
    assert report.tokens_vision == 0
    assert any("no calibration row has an image" in message for message in report.warnings)
    _assert_sane(report)
