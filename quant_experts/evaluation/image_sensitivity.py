"""Does the quantized model still look at its images? Held-out rows with other pixels, before and after quantization.

A model that answers the same for every image can have a low KL to the full-precision one on rows whose text alone
gives the answer away. So the image is changed and everything else kept: whoever looks must change his answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import Call, Calls, Stream
from quant_experts.evaluation.next_token import CHUNK, after_the_blocks, log_probabilities, text_positions
from quant_experts.model.block_runner import Glue, block_glue
from quant_experts.model.blueprint import Blueprint
from quant_experts.report.data import ImageSensitivity, Reaction
from quant_experts.walk.resume_files import HiddenStates

LOOKS_AWAY, LOOKS_LESS = 0.5, 0.8
"""Ratios of the reactions, quantized to full precision, below which the verdict is so."""


@torch.no_grad()
def measure_image_sensitivity(blueprint: Blueprint, calls: Calls, work: Path) -> ImageSensitivity | None:
    """Compare the streams of the variants behind the last block with those of their rows; None without variants.

    A reaction is the mean KL(own image ‖ other image) of the next-token distribution, over text positions behind the
    row's first image: those before it cannot know which image comes. Each model is compared with itself.
    """
    originals = {call.index: call for call in calls.held_out}
    hidden = HiddenStates(work, calls, calls.first + blueprint.blocks)
    streams: tuple[Stream, Stream] = ("full", "quantized")
    sums = {(change, stream): 0.0 for change in ("swapped", "blanked") for stream in streams}
    tokens = {"swapped": 0, "blanked": 0}
    rows: dict[int, int] = {}
    with after_the_blocks(blueprint), block_glue(blueprint.language_model, blueprint.blocks) as glue:
        for variant in calls.variants:
            assert variant.variant_of is not None
            assert variant.change is not None
            original = originals[variant.variant_of]
            positions = _behind_the_first_image(calls, original, blueprint.device)
            for stream in streams:
                states = {
                    call.index: _behind_the_blocks(blueprint, glue, calls, call, hidden, stream)
                    for call in (original, variant)
                }
                sums[variant.change, stream] += _distance(blueprint, original, variant, states, positions)
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


def smallest_ratio(images: ImageSensitivity) -> float | None:
    """The number behind the verdict: the smaller ratio of the reactions that the full-precision model shows at all."""
    return _smallest(images.swapped, images.blanked)


def warning_about(images: ImageSensitivity) -> str | None:
    """A plain sentence for every verdict but the good one."""
    found = smallest_ratio(images)
    if images.verdict == "keeps_looking":
        return None
    if found is None:
        return (
            f"the full-precision model answers the same for every image on {images.rows} held-out rows: whether "
            "quantization makes it look away cannot be measured on them; give rows whose answer is in the image"
        )
    loss = "has largely stopped looking at its images" if images.verdict == "looks_away" else "looks less at its images"
    return (
        f"the quantized model {loss}: with another image its answers change by {found:.0%} of what the full-precision "
        f"model's do ({images.rows} held-out rows); use more activation or weight bits, or more rows with images"
    )


def verdict_of(
    swapped: Reaction | None, blanked: Reaction | None
) -> Literal["keeps_looking", "looks_less", "looks_away", "never_looked"]:
    found = _smallest(swapped, blanked)
    if found is None:
        return "never_looked"
    if found < LOOKS_AWAY:
        return "looks_away"
    return "looks_less" if found < LOOKS_LESS else "keeps_looking"


def _smallest(*reactions: Reaction | None) -> float | None:
    ratios = [reaction.ratio for reaction in reactions if reaction is not None]
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def _behind_the_first_image(calls: Calls, call: Call, device: torch.device) -> Tensor:
    _, positions = text_positions(calls, call, device)
    first = int(calls.vision(call).to(torch.uint8).argmax())
    return positions[positions >= first]


def _behind_the_blocks(
    blueprint: Blueprint, glue: Glue, calls: Calls, call: Call, hidden: HiddenStates, stream: Stream
) -> Tensor:
    """(tokens, d), behind the last norm."""
    arguments = calls.arguments(call, blueprint.device, stream)
    return glue.run(arguments, hidden.of_stream(stream, call).to(blueprint.device))[0]


def _distance(
    blueprint: Blueprint, original: Call, variant: Call, states: Mapping[int, Tensor], positions: Tensor
) -> float:
    """Sum over positions of KL(original ‖ variant), both of one stream. ``states``: index of the call → its own."""
    own, other = states[original.index], states[variant.index]
    return sum(
        _kl(log_probabilities(blueprint, own[chunk], original), log_probabilities(blueprint, other[chunk], original))
        for chunk in torch.split(positions, CHUNK)
    )


def _kl(p: Tensor, q: Tensor) -> float:
    return max(float((p.exp() * (p - q)).sum()), 0.0)  # rounding may leave -1e-9 where both agree
