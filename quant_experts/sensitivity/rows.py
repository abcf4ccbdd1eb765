"""The few calibration rows that sensitivity is measured on."""

from __future__ import annotations

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.errors import InvalidCalibration
from quant_experts.seeding import generator

ROWS = 4
"""A ranking of groups needs few tokens: a row of a few hundred tokens gives a mean over as many positions."""

TOKENS = 4096
"""Most tokens of these rows together: a bound on work and disk for large images. The first row always counts."""


def few_rows(inputs: CapturedInputs, seed: int) -> tuple[CapturedRow, ...]:
    """A seeded choice among the rows to fit, whole rows only; one with an image is among them if there is any.

    Raises InvalidCalibration when no row has two text tokens.
    """
    fit = [row for row in inputs.fit if bool((~inputs.vision(row)[1:]).any())]
    if not fit:
        raise InvalidCalibration("no calibration row has two text tokens: sensitivity cannot be measured; give text")
    permutation = torch.randperm(len(fit), generator=generator(seed, "sensitivity", "rows")).tolist()
    order = [fit[place] for place in permutation]
    with_image = next((row for row in order if row.tokens_vision), None)
    if with_image is not None:
        order = [with_image, *(row for row in order if row is not with_image)]
    rows_so_far, tokens = order[:1], order[0].tokens
    for row in order[1:]:
        if len(rows_so_far) < ROWS and tokens + row.tokens <= TOKENS:
            rows_so_far.append(row)
            tokens += row.tokens
    return tuple(sorted(rows_so_far, key=lambda row: row.index))
