"""What quantization did to a model, on the same held-out boards for every method: KL, accuracy, perplexity.

The full-precision model answers once; every quantized model is then asked the same questions and compared token by
token. Counted are the tokens of the answers, end included: what the model is there for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.digits.boards import Question
from benchmarks.digits.reading import answer_logits, by_task, exact_matches


@dataclass(frozen=True)
class Yardstick:
    """``full``: (tokens, vocabulary) float32 log-probabilities of the full-precision model at every answer token;
    ``targets``: (tokens,); ``rows``: (tokens,), the question of each token."""

    processor: Any
    questions: Sequence[Question]
    full: Tensor
    targets: Tensor
    rows: Tensor


def open_yardstick(model: Any, processor: Any, questions: Sequence[Question]) -> Yardstick:
    parts = list(answer_logits(model, processor, questions))
    logits, targets, rows = (torch.cat(part) for part in zip(*parts, strict=True))
    return Yardstick(processor, questions, logits.log_softmax(-1), targets, rows)


def measure(yardstick: Yardstick, model: Any) -> dict[str, Any]:
    """The figures of ``compare`` for ``model``, quantized or not."""
    logits = torch.cat([part for part, _, _ in answer_logits(model, yardstick.processor, yardstick.questions)])
    return compare(yardstick, logits)


def compare(yardstick: Yardstick, logits: Tensor) -> dict[str, Any]:
    """Figures of a model that gave ``logits`` (tokens, vocabulary) at every answer token, ready for JSON.

    ``kl``: nats per answer token, KL(full ‖ model); ``kl_of_rows``: per question, the sum over its answer tokens;
    ``tasks``: task → [exactly right, asked]. Raises ValueError when a logit is not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the model's logits are not finite")
    count = len(yardstick.questions)
    found = logits.log_softmax(-1)
    kl = (yardstick.full.exp() * (yardstick.full - found)).sum(-1).double()
    of_rows = torch.zeros(count, dtype=torch.float64).index_add_(0, yardstick.rows, kl)
    loss = -found.gather(-1, yardstick.targets.unsqueeze(-1)).mean()
    right = exact_matches(logits, yardstick.targets, yardstick.rows, count)
    return {
        "tokens": len(kl),
        "kl": float(kl.mean()),
        "kl_of_rows": [float(f"{value:.4g}") for value in of_rows],
        "top1_agreement": float((found.argmax(-1) == yardstick.full.argmax(-1)).float().mean()),
        "perplexity": math.exp(float(loss)),
        "tasks": {task: [a.hits, a.rows] for task, a in by_task(yardstick.questions, right).items()},
    }
