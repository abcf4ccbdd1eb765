"""The gate that finds a quantized model which no longer looks at its images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from quant_experts.calibration.captured_inputs import read_captured_inputs
from quant_experts.calibration.image_variants import image_variants
from quant_experts.calibration.rows import Row, parse_row
from quant_experts.evaluation.image_sensitivity import verdict_of, warning_about
from quant_experts.report.data import ImageSensitivity, QualityReport, Reaction
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model
from tests.quant_experts.test_pipeline import OPTIONS, run
from tests.rows import data_uri, image_row, picture, text_row, write_rows


def _row(number: int, *images: bytes) -> Row:
    parts = [{"type": "image", "image": data_uri(image)} for image in images]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}
    return parse_row(number, {"messages": [message]}, Path())


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# --- Variants --------------------------------------------------------------------------------------------------------


def test_a_row_gets_the_next_rows_images_at_its_own_sizes_and_a_grey_of_its_own_brightness() -> None:
    first = _row(1, picture(seed=1, size=(80, 60)), picture(seed=2, size=(40, 90), kind="JPEG"))
    second = _row(2, picture(seed=3, size=(33, 44)))
    swapped, blanked, *others = image_variants([(0, first), (5, second)])
    assert [(v.original, v.change) for v in (swapped, blanked, *others)] == [
        (0, "swapped"),
        (0, "blanked"),
        (5, "swapped"),
        (5, "blanked"),
    ]
    assert swapped.row.messages == first.messages
    assert [_opened(image).size for image in swapped.row.images] == [(80, 60), (40, 90)]
    resized = _opened(picture(seed=3, size=(33, 44))).resize((80, 60), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(_opened(swapped.row.images[0])), np.asarray(resized))
    grey = np.asarray(_opened(blanked.row.images[0]))
    assert len(np.unique(grey)) == 1
    assert abs(float(grey[0, 0, 0]) - np.asarray(_opened(first.images[0]).convert("L")).mean()) < 1


def test_a_copy_of_the_same_image_is_no_swap() -> None:
    same, other = picture(seed=1), picture(seed=2)
    rows = [(0, _row(1, same)), (1, _row(2, same)), (2, _row(3, other))]
    swapped = {v.original: v.row.images for v in image_variants(rows) if v.change == "swapped"}
    assert set(swapped) == {0, 1, 2}
    assert np.array_equal(np.asarray(_opened(swapped[0][0])), np.asarray(_opened(other)))
    assert {v.change for v in image_variants(rows[:2])} == {"blanked"}


def test_one_row_alone_is_only_blanked_and_a_grey_image_not_even_that() -> None:
    assert [v.change for v in image_variants([(0, _row(1, picture()))])] == ["blanked"]
    out = io.BytesIO()
    Image.new("RGB", (84, 84), (77, 77, 77)).save(out, format="PNG")
    assert list(image_variants([(0, _row(1, out.getvalue()))])) == []


# --- Verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("swapped", "blanked", "verdict"),
    [
        ((1.0, 0.9), (1.0, 1.2), "keeps_looking"),
        ((1.0, 0.9), (1.0, 0.79), "looks_less"),
        ((1.0, 0.49), (1.0, 1.2), "looks_away"),
        (None, (1.0, 0.3), "looks_away"),
        ((0.0, 0.0), (1.0, 0.9), "keeps_looking"),
        ((0.0, 0.5), (0.0, 0.5), "never_looked"),
    ],
)
def test_the_smaller_ratio_decides(
    swapped: tuple[float, float] | None, blanked: tuple[float, float], verdict: str
) -> None:
    reactions = [None if pair is None else Reaction(full=pair[0], quantized=pair[1]) for pair in (swapped, blanked)]
    assert verdict_of(*reactions) == verdict


def test_every_verdict_but_the_good_one_has_a_plain_sentence() -> None:
    def images(quantized: float, full: float = 1.0) -> ImageSensitivity:
        swapped = Reaction(full=full, quantized=quantized)
        return ImageSensitivity(rows=4, tokens=9, swapped=swapped, verdict=verdict_of(swapped, None))

    assert warning_about(images(0.9)) is None
    assert "looks less at its images: with another image its answers change by 60%" in str(warning_about(images(0.6)))
    assert "largely stopped looking" in str(warning_about(images(0.2)))
    assert "full-precision model answers the same for every image" in str(warning_about(images(0.2, full=0.0)))


# --- Whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QualityReport]:
    directory = tmp_path_factory.mktemp("looking")
    model = make_model("qwen2_vl", directory / "model", blocks=1, hidden=64)
    rows = write_rows(directory / "rows.jsonl", [image_row(i) if i % 3 else text_row(i) for i in range(9)])
    spec = QuantizationSpec.preset("qe", **{**OPTIONS, "holdout": 0.5})
    return directory, run(directory, model=model, rows=rows, spec=spec)


def test_a_run_measures_both_reactions_in_both_models(looking: tuple[Path, QualityReport]) -> None:
    images = looking[1].images
    assert images is not None
    assert images.swapped is not None
    assert images.blanked is not None
    for reaction in (images.swapped, images.blanked):
        assert reaction.full > 1e-4
        assert reaction.ratio == pytest.approx(1, abs=0.3)
    assert images.verdict == "keeps_looking"
    assert images.smallest_ratio == min(images.swapped.ratio or 0, images.blanked.ratio or 0)


def test_variants_have_their_rows_layout_and_are_nobody_elses_business(looking: tuple[Path, QualityReport]) -> None:
    work, report = looking[0] / "work", looking[1]
    inputs = read_captured_inputs(work, json.loads((work / "calls.json").read_text())["fingerprint"])
    assert inputs is not None
    originals = {row.index: row for row in inputs.held_out}
    assert {(v.variant_of, v.change) for v in inputs.variants} == {
        (row.index, change) for row in inputs.held_out if row.tokens_vision for change in ("swapped", "blanked")
    }
    for variant in inputs.variants:
        assert variant.variant_of is not None
        original = originals[variant.variant_of]
        assert torch.equal(inputs.input_ids(variant), inputs.input_ids(original))
        assert torch.equal(inputs.vision(variant), inputs.vision(original))
        assert not torch.equal(inputs.embeddings(variant), inputs.embeddings(original))
        text = ~inputs.vision(original)
        assert torch.equal(inputs.embeddings(variant)[0, text], inputs.embeddings(original)[0, text])
    assert len(inputs.variants) >= 4
    assert len(inputs.rows) == report.rows_used + report.rows_held_out
    assert report.quality.rows == len(inputs.held_out)
    assert report.blocks[0].groups[0].tokens == sum(row.tokens for row in inputs.held_out)
    assert report.tokens_text + report.tokens_vision == sum(row.tokens for row in inputs.fit)


def test_a_model_that_never_looked_is_told_from_one_that_looks_away(tmp_path: Path) -> None:
    model = make_model("qwen2_vl", tmp_path / "model", blocks=1, hidden=64)
    tensors = load_file(model / "model.safetensors")
    for name in ("visual.merger.mlp.2.weight", "visual.merger.mlp.2.bias"):
        tensors[name].zero_()  # every image becomes the same embedding
    save_file(tensors, model / "model.safetensors")
    report = run(tmp_path, model=model, rows=write_rows(tmp_path / "rows.jsonl", [image_row(i) for i in range(5)]))
    assert report.images is not None
    assert report.images.verdict == "never_looked"
    assert report.images.swapped == Reaction(full=0.0, quantized=0.0)
    assert sum("answers the same for every image" in warning for warning in report.warnings) == 1
