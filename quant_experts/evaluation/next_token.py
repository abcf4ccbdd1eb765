"""How quantization changes the next token, on held-out rows that passed the walk both ways (method.md, section 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow, Stream
from quant_experts.checkpoint.verify import Probe
from quant_experts.errors import InvalidCalibration, NumericalFailure
from quant_experts.model.block_runner import open_block_runner
from quant_experts.model.blueprint import Blueprint, loaded
from quant_experts.report.data import ModelQuality
from quant_experts.walk.resume_files import HiddenStates

CHUNK = 256
"""Positions whose logits are in memory at a time: 256 x 152k float32 are 155 MB, twice."""

PROBE_TOKENS = 16
"""A written checkpoint must reproduce the logits of this many last positions of a probe row."""


@contextmanager
def last_hidden_states(
    blueprint: Blueprint, inputs: CapturedInputs, work: Path
) -> Iterator[Callable[[CapturedRow, Stream], Tensor]]:
    """Yields a function: a row in one of its streams → (tokens, d), the hidden states behind the last norm.

    ``inputs``: of the last stack. The output head is in memory while this is open.
    """
    hidden = HiddenStates(work, inputs, inputs.first + blueprint.blocks)

    def states_of(row: CapturedRow, stream: Stream) -> Tensor:
        state = hidden.read(stream, row).to(blueprint.device)
        return runner.run(inputs.arguments(row, blueprint.device, stream), state)[0]

    with (
        loaded(blueprint, *blueprint.manifest.after),
        open_block_runner(blueprint.language_model, blueprint.blocks, blueprint.manifest.decoder) as runner,
    ):
        yield states_of


@torch.no_grad()
def evaluate(
    blueprint: Blueprint, inputs: CapturedInputs, work: Path, *, stream: Literal["quantized", "baseline"] = "quantized"
) -> tuple[ModelQuality, Probe | None]:
    """Compare the held-out rows in ``stream`` with the full-precision stream, behind the last block.

    Returns the figures, and of the quantized stream the logits that the written checkpoint must reproduce. Only
    positions whose next token is text count: a model does not predict image placeholders.
    Raises NumericalFailure when a logit is not finite, InvalidCalibration when no held-out row has two text tokens.
    """
    rows: list[Tensor] = []
    probe: Probe | None = None
    with last_hidden_states(blueprint, inputs, work) as states_of:
        for row in inputs.held_out:
            full, quantized = states_of(row, "full"), states_of(row, stream)
            targets, positions = text_positions(inputs, row, blueprint.device)
            sums = torch.zeros(5, dtype=torch.float64)
            for chunk in torch.split(positions, CHUNK):
                sums += _compare(blueprint, full[chunk], quantized[chunk], targets[chunk], row)
            rows.append(sums)
            model_inputs = inputs.probe(row)
            if model_inputs is not None:
                probe = Probe(model_inputs, _logits(blueprint, quantized[-PROBE_TOKENS:]).cpu().unsqueeze(0))
    return _quality(torch.stack(rows)), probe


def _quality(rows: Tensor) -> ModelQuality:
    """rows: (rows, 5) float64, as ``_compare`` sums them."""
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
    """Standard error of ``sums.sum() / counts.sum()``. The row is the unit that was drawn: its tokens are dependent.

    sums, counts: (rows,) float64. This is the ratio estimator's error (Cochran, Sampling Techniques, section 6.4); for
    rows of equal length it is the standard error of the mean over rows. Rows without a token do not count. None when
    fewer than two rows are left.
    """
    sums, counts = sums[counts > 0], counts[counts > 0]
    n = len(counts)
    if n < 2:
        return None
    residual = sums - counts * (sums.sum() / counts.sum())
    return float((residual.square().sum() * n / (n - 1)).sqrt() / counts.sum())


def text_positions(inputs: CapturedInputs, row: CapturedRow, device: torch.device) -> tuple[Tensor, Tensor]:
    """The next token at every position (tokens - 1,), and the positions where it is text."""
    targets = inputs.input_ids(row)[1:]
    positions = (~inputs.vision(row)[1:]).nonzero().flatten()
    return targets.to(device), positions.to(device)


def _compare(blueprint: Blueprint, full: Tensor, quantized: Tensor, targets: Tensor, row: CapturedRow) -> Tensor:
    """Sums over positions: their number, KL(full ‖ quantized), top-1 agreement, both negative log-likelihoods; (5,)
    float64."""
    p, q = (log_probabilities(blueprint, hidden, row) for hidden in (full, quantized))
    kl = (p.exp() * (p - q)).sum()
    agreement = (p.argmax(-1) == q.argmax(-1)).sum()
    of_target = [-logs.gather(-1, targets.unsqueeze(-1)).sum() for logs in (p, q)]
    return torch.stack([torch.ones_like(kl) * len(targets), kl, agreement, *of_target]).double().cpu()


def log_probabilities(blueprint: Blueprint, hidden: Tensor, row: CapturedRow) -> Tensor:
    """hidden: (positions, d) behind the last norm; returns (positions, vocabulary) float32 of the next token.

    Raises NumericalFailure naming the row when one is not finite.
    """
    logs = _logits(blueprint, hidden).log_softmax(-1)
    if not bool(torch.isfinite(logs).all()):
        raise NumericalFailure(f"calibration row {row.number}: the model's logits are not finite")
    return logs


def _logits(blueprint: Blueprint, hidden: Tensor) -> Tensor:
    """hidden: (positions, d) behind the last norm; returns (positions, vocabulary) float32."""
    return blueprint.logits(hidden).float()


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # e^709 is the largest double
