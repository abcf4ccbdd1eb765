"""Limits decide a verdict, and say what was missed in words that need no manual."""

from __future__ import annotations

from typing import Any

import pytest

from quant_experts.evaluation.acceptance import judge
from quant_experts.report.data import ImageSensitivity, ModelQuality, QualityReport, Reaction, Size
from quant_experts.spec.specification import AcceptIf


def _report(images: ImageSensitivity | None = None) -> QualityReport:
    quality = ModelQuality(
        rows=4, tokens=100, kl=0.012, top1_agreement=0.97, perplexity_full=8.0, perplexity_quantized=8.4
    )
    size = Size(bytes_before=100, bytes_after=30, effective_bits=4.6, base_bits=4.1, quantized_weights=100)
    return QualityReport(
        model="m",
        scheme="W4A6",
        method="qe",
        blocks=[],
        quality=quality,
        size=size,
        images=images,
        rows_used=10,
        rows_held_out=4,
    )


def _images(swapped: Reaction | None, blanked: Reaction | None, verdict: Any = "keeps_looking") -> ImageSensitivity:
    return ImageSensitivity(rows=2, tokens=20, swapped=swapped, blanked=blanked, verdict=verdict)


def test_every_limit_kept_is_accepted() -> None:
    limits = AcceptIf(max_kl=0.012, min_top1_agreement=0.97, max_perplexity_increase=0.0501, min_image_sensitivity=0.74)
    images = _images(Reaction(full=0.4, quantized=0.3), Reaction(full=0.4, quantized=0.5))
    found = judge(_report(images), limits)
    assert found.verdict == "accepted"
    assert found.missed == []
    assert found.limits == {
        "max_kl": 0.012,
        "min_top1_agreement": 0.97,
        "max_perplexity_increase": 0.0501,
        "min_image_sensitivity": 0.74,
    }


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ({"max_kl": 0.01}, "KL is 0.012 nats per token, over the limit of 0.01"),
        ({"min_top1_agreement": 0.99}, "agrees at 97.00% of the positions, under the limit of 99.00%"),
        ({"max_perplexity_increase": 0.02}, "rises by 5.00% (from 8 to 8.4), over the limit of 2.00%"),
        ({"min_image_sensitivity": 0.8}, "is 75.00% of the full-precision model's, under the limit of 80.00%"),
    ],
)
def test_a_limit_that_is_not_kept_is_missed_with_both_numbers(limit: dict[str, float], sentence: str) -> None:
    images = _images(Reaction(full=0.4, quantized=0.3), None)
    found = judge(_report(images), AcceptIf(**limit, **({} if "max_kl" in limit else {"max_kl": 1.0})))
    assert found.verdict == "rejected"
    assert len(found.missed) == 1
    assert sentence in found.missed[0]


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (None, "was not measured, because no held-out row has an image"),
        (_images(Reaction(full=0.0, quantized=0.0), None, "never_looked"), "does not react to the images"),
    ],
)
def test_a_limit_on_images_that_were_not_measured_is_missed(images: ImageSensitivity | None, sentence: str) -> None:
    found = judge(_report(images), AcceptIf(min_image_sensitivity=0.0))
    assert found.verdict == "rejected"
    assert sentence in found.missed[0]
