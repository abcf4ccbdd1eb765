"""Does the quantized model still look at its images? Held-out rows with other pixels, before and after quantization.

A model that answers the same for every image can have a low KL on rows whose text alone gives the answer away. So the
image changes and everything else stays: a model that looks at the image must change its answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow, Stream
from quant_experts.evaluation.next_token import CHUNK, last_hidden_states, log_probabilities, text_positions
from quant_experts.model.blueprint import Blueprint
from quant_experts.report.data import ImageSensitivity, Reaction, smallest_ratio

LOOKS_AWAY, LOOKS_LESS = 0.5, 0.8
"""Ratios of the reactions, quantized to full precision. Each verdict holds below its ratio."""


@torch.no_grad()
def measure_image_sensitivity(blueprint: Blueprint, inputs: CapturedInputs, work: Path) -> ImageSensitivity | None:
    """Compare each variant with its own row, behind the last block; None without variants.

    A reaction is the mean KL(own image ‖ other image) of the next-token distribution. It counts the text positions
    behind the row's first image; earlier positions cannot know the image. Each model is compared with itself.
    """
    originals = {row.index: row for row in inputs.held_out}
    streams: tuple[Stream, Stream] = ("full", "quantized")
    sums = {(change, stream): 0.0 for change in ("swapped", "blanked") for stream in streams}
    tokens = {"swapped": 0, "blanked": 0}
    rows: dict[int, int] = {}
    with last_hidden_states(blueprint, inputs, work) as states_of:
        for variant in inputs.variants:
            assert variant.variant_of is not None
            assert variant.change is not None
            original = originals[variant.variant_of]
            positions = _behind_the_first_image(inputs, original, blueprint.device)
            for stream in streams:
                own, other = states_of(original, stream), states_of(variant, stream)
                sums[variant.change, stream] += sum(
                    _kl(*(log_probabilities(blueprint, states[chunk], original) for states in (own, other)))
                    for chunk in torch.split(positions, CHUNK)
                )
            tokens[variant.change] += len(positions)
            rows[original.index] = len(positions)
    if not any(rows.values()):
        return None
    swapped, blanked = (
        Reaction(full=sums[change, "full"] / tokens[change], quantized=sums[change, "quantized"] / tokens[change])
        if tokens[change]
        else None
        for change in ("swapped", "blanked")
    )
    return ImageSensitivity(
        rows=len(rows),
        tokens=sum(rows.values()),
        swapped=swapped,
        blanked=blanked,
        verdict=verdict_of(swapped, blanked),
    )


def warning_about(images: ImageSensitivity) -> str | None:
    """A warning for every verdict but the good one."""
    ratio = images.smallest_ratio
    if images.verdict == "keeps_looking":
        return None
    if ratio is None:
        return (
            f"the full-precision model answers the same for every image on {images.rows} held-out rows: whether "
            "quantization makes it look away cannot be measured on them; give rows whose answer is in the image"
        )
    loss = "has largely stopped looking at its images" if images.verdict == "looks_away" else "looks less at its images"
    return (
        f"the quantized model {loss}: with another image its answers change by {ratio:.0%} of what the full-precision "
        f"model's do ({images.rows} held-out rows); use more activation or weight bits, or more rows with images"
    )


def verdict_of(
    swapped: Reaction | None, blanked: Reaction | None
) -> Literal["keeps_looking", "looks_less", "looks_away", "never_looked"]:
    ratio = smallest_ratio(swapped, blanked)
    if ratio is None:
        return "never_looked"
    if ratio < LOOKS_AWAY:
        return "looks_away"
    return "looks_less" if ratio < LOOKS_LESS else "keeps_looking"


def _behind_the_first_image(inputs: CapturedInputs, row: CapturedRow, device: torch.device) -> Tensor:
    _, positions = text_positions(inputs, row, device)
    first = int(inputs.vision(row).to(torch.uint8).argmax())
    return positions[positions >= first]


def _kl(p: Tensor, q: Tensor) -> float:
    """Sum over positions of KL(p ‖ q). p, q: (positions, vocabulary) log-probabilities."""
    return max(float((p.exp() * (p - q)).sum()), 0.0)  # rounding may leave -1e-9 where both agree
