"""The few calibration rows that sensitivity is measured on."""

from __future__ import annotations

import torch

from quant_experts.calibration.captured_inputs import Call, Calls
from quant_experts.errors import InvalidCalibration
from quant_experts.seeding import generator

ROWS = 4
"""A ranking of groups needs few tokens: each row of a few hundred gives a mean over as many positions."""

TOKENS = 4096
"""Of all these rows together: bounds the work and the disk for rows of large images. The first row always counts."""


def few_rows(calls: Calls, seed: int) -> tuple[Call, ...]:
    """A seeded choice among the rows to fit, whole rows only; one with an image is among them if there is any.

    Raises InvalidCalibration when no row has two text tokens.
    """
    fit = [call for call in calls.fit if bool((~calls.vision(call)[1:]).any())]
    if not fit:
        raise InvalidCalibration("no calibration row has two text tokens: sensitivity cannot be measured; give text")
    drawn = torch.randperm(len(fit), generator=generator(seed, "sensitivity", "rows")).tolist()
    order = [fit[place] for place in drawn]
    with_image = next((call for call in order if call.tokens_vision), None)
    if with_image is not None:
        order = [with_image, *(call for call in order if call is not with_image)]
    chosen, tokens = order[:1], order[0].tokens
    for call in order[1:]:
        if len(chosen) < ROWS and tokens + call.tokens <= TOKENS:
            chosen.append(call)
            tokens += call.tokens
    return tuple(sorted(chosen, key=lambda call: call.index))
