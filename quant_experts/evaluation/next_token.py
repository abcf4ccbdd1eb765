"""What quantization did to the next token, on held-out rows that walked both ways (method.md, section 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import Call, Calls, Stream
from quant_experts.checkpoint.verify import Probe
from quant_experts.errors import InvalidCalibration, NumericalFailure
from quant_experts.model.block_runner import block_glue
from quant_experts.model.blueprint import Blueprint, empty, fill
from quant_experts.report.data import ModelQuality
from quant_experts.walk.resume_files import HiddenStates

CHUNK = 256
"""Positions whose logits are in memory at a time: 256 x 152k float32 are 155 MB, twice."""

PROBE_TOKENS = 16
"""Last positions of a probe row whose logits a written checkpoint must reproduce."""


@torch.no_grad()
def evaluate(
    blueprint: Blueprint, calls: Calls, work: Path, *, stream: Literal["quantized", "baseline"] = "quantized"
) -> tuple[ModelQuality, Probe | None]:
    """Compare ``stream`` of the held-out rows with the full-precision one behind the last block; and what the written
    checkpoint must reproduce when it is the quantized one.

    Counted are positions whose next token is text: an image placeholder is nothing that a model has to foresee.
    Raises NumericalFailure when a logit is not finite, InvalidCalibration when no held-out row has two text tokens.
    """
    hidden = HiddenStates(work, calls, calls.first + blueprint.blocks)
    streams: tuple[Stream, Stream] = ("full", stream)
    rows: list[Tensor] = []
    probe: Probe | None = None
    with after_the_blocks(blueprint), block_glue(blueprint.language_model, blueprint.blocks) as glue:
        for call in calls.held_out:
            full, quantized = (
                glue.run(calls.arguments(call, blueprint.device, of), hidden.of_stream(of, call).to(blueprint.device))[
                    0
                ]
                for of in streams
            )
            targets, positions = text_positions(calls, call, blueprint.device)
            sums = torch.zeros(5, dtype=torch.float64)
            for chunk in torch.split(positions, CHUNK):
                sums += _compare(blueprint, full[chunk], quantized[chunk], targets[chunk], call)
            rows.append(sums)
            inputs = calls.probe(call)
            if inputs is not None:
                probe = Probe(inputs, _logits(blueprint, quantized[-PROBE_TOKENS:]).cpu().unsqueeze(0))
    return _quality(torch.stack(rows)), probe


def _quality(rows: Tensor) -> ModelQuality:
    """rows: (rows, 5) float64, as :func:`_compare` sums them."""
    sums = rows.sum(0)
    tokens = int(sums[0])
    if tokens == 0:
        raise InvalidCalibration("no held-out calibration row has two text tokens: nothing to measure")
    kl, agreement, full_loss, quantized_loss = (sums[1:] / tokens).tolist()
    return ModelQuality(
        rows=len(rows),
        tokens=tokens,
        kl=max(kl, 0.0),  # rounding may leave -1e-9 where both agree
        top1_agreement=agreement,
        perplexity_full=_perplexity(full_loss),
        perplexity_quantized=_perplexity(quantized_loss),
        kl_standard_error=standard_error(rows[:, 1], rows[:, 0]),
    )


def standard_error(sums: Tensor, counts: Tensor) -> float | None:
    """Of ``sums.sum() / counts.sum()``, with the row as the unit that was drawn: tokens of a row are not independent.

    sums, counts: (rows,) float64. The ratio estimator's (Cochran, Sampling Techniques, section 6.4); with rows of equal
    length it is the standard error of the mean of the rows' means. Rows without a token do not count; None for fewer
    than two others.
    """
    sums, counts = sums[counts > 0], counts[counts > 0]
    n = len(counts)
    if n < 2:
        return None
    residual = sums - counts * (sums.sum() / counts.sum())
    return float((residual.square().sum() * n / (n - 1)).sqrt() / counts.sum())


def text_positions(calls: Calls, call: Call, device: torch.device) -> tuple[Tensor, Tensor]:
    """The next token at every position (tokens - 1,), and the positions where it is text."""
    targets = calls.input_ids(call)[1:]
    positions = (~calls.vision(call)[1:]).nonzero().flatten()
    return targets.to(device), positions.to(device)


def _compare(blueprint: Blueprint, full: Tensor, quantized: Tensor, targets: Tensor, call: Call) -> Tensor:
    """Sums over positions: their number, KL(full ‖ quantized), top-1 agreement, both negative log-likelihoods; (5,)
    float64."""
    p, q = (log_probabilities(blueprint, hidden, call) for hidden in (full, quantized))
    kl = (p.exp() * (p - q)).sum()
    agreement = (p.argmax(-1) == q.argmax(-1)).sum()
    of_target = [-logs.gather(-1, targets.unsqueeze(-1)).sum() for logs in (p, q)]
    return torch.stack([torch.ones_like(kl) * len(targets), kl, agreement, *of_target]).double().cpu()


def log_probabilities(blueprint: Blueprint, hidden: Tensor, call: Call) -> Tensor:
    """hidden: (positions, d) behind the last norm; returns (positions, vocabulary) float32 of the next token.

    Raises NumericalFailure naming the row when one is not finite.
    """
    logs = _logits(blueprint, hidden).log_softmax(-1)
    if not bool(torch.isfinite(logs).all()):
        raise NumericalFailure(f"calibration row {call.number}: the model's logits are not finite")
    return logs


def _logits(blueprint: Blueprint, hidden: Tensor) -> Tensor:
    """hidden: (positions, d) behind the last norm; returns (positions, vocabulary) float32."""
    return blueprint.logits(hidden).float()


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # e^709 is the largest double


@contextmanager
def after_the_blocks(blueprint: Blueprint) -> Iterator[None]:
    """The output head in memory."""
    head = blueprint.manifest.head
    fill(blueprint, head)
    try:
        yield
    finally:
        empty(blueprint, head)
