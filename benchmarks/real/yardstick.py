"""What quantization did to a language model: KL to the full-precision model, perplexity, top-1, on the same tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Yardstick:
    """``rows``: {kind, ids}, of the evaluation. ``full``: (tokens, vocabulary) float16, log-probabilities of the
    full-precision model; half precision is off by 1e-5 of a likely token's and by some 1e-5 of a KL."""

    rows: list[dict[str, Any]]
    full: np.ndarray[Any, Any]


def open_yardstick(evaluation: Path, model: Path) -> Yardstick:
    """The full-precision model answers once; its answers are kept beside the evaluation."""
    from transformers import AutoModelForCausalLM

    rows = json.loads(evaluation.read_text(encoding="utf-8"))
    vocabulary = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    shape = (sum(len(row["ids"]) - 1 for row in rows), vocabulary)
    path = evaluation.with_name("full.float16")
    if not path.is_file():
        fresh = path.with_suffix(".new")
        written = np.memmap(fresh, dtype=np.float16, mode="w+", shape=shape)
        place = 0
        for found in log_probabilities(AutoModelForCausalLM.from_pretrained(model).eval(), rows):
            written[place : place + len(found)] = found.half().numpy()
            place += len(found)
        written.flush()
        fresh.rename(path)
    return Yardstick(rows, np.memmap(path, dtype=np.float16, mode="r", shape=shape))


def every_nth(yardstick: Yardstick, n: int) -> Yardstick:
    """The rows 0, n, 2n … alone."""
    ends = np.cumsum([len(row["ids"]) - 1 for row in yardstick.rows])
    parts = np.split(yardstick.full, ends[:-1])
    return Yardstick(yardstick.rows[::n], np.concatenate(parts[::n])) if n > 1 else yardstick


def of_full(yardstick: Yardstick) -> dict[str, Any]:
    """Perplexity of the text under the full-precision model."""
    targets = torch.tensor([token for row in yardstick.rows for token in row["ids"][1:]])
    found = yardstick.full[torch.arange(len(targets)).numpy(), targets.numpy()]
    return {"perplexity": math.exp(-float(found.astype(np.float64).mean())), "tokens": len(targets)}


@torch.no_grad()
def log_probabilities(model: Any, rows: list[dict[str, Any]]) -> Iterator[Tensor]:
    """Of each row, (its tokens - 1, vocabulary) float32: what the model says about every token but the first."""
    for row in rows:
        logits = model(input_ids=torch.tensor([row["ids"]])).logits[0, :-1].float()
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("the model's logits are not finite")
        yield logits.log_softmax(-1)


def measure(yardstick: Yardstick, model: Any) -> dict[str, Any]:
    """The figures of ``compare`` for ``model``, quantized or not."""
    return compare(yardstick, log_probabilities(model, yardstick.rows))


def compare(yardstick: Yardstick, answers: Iterable[Tensor]) -> dict[str, Any]:
    """Figures of a model that gave ``answers``: of each row, (its tokens - 1, vocabulary) float32 log-probabilities.

    ``kl``: nats per token, KL(full ‖ model), mean over rows; ``kl_of_rows``: of each row. ``top1``: share of tokens
    whose likeliest successor is the same. ``perplexity``: of the text."""
    kl_of_rows, same, loss, tokens, place = [], 0, 0.0, 0, 0
    for row, found in zip(yardstick.rows, answers, strict=True):
        kept = yardstick.full[place : place + len(found)].astype(np.float32)
        full = torch.from_numpy(kept).log_softmax(-1)
        place += len(found)
        kl_of_rows.append(float((full.exp() * (full - found)).sum(-1).double().mean()))
        same += int((full.argmax(-1) == found.argmax(-1)).sum())
        loss -= float(found.gather(-1, torch.tensor(row["ids"][1:]).unsqueeze(-1)).sum())
        tokens += len(found)
    return {
        "kl": sum(kl_of_rows) / len(kl_of_rows),
        "kl_of_rows": kl_of_rows,
        "top1": same / tokens,
        "perplexity": math.exp(loss / tokens),
        "tokens": tokens,
    }
