"""What a script inside a peer's environment is given and gives back; nothing of this repository is installed there.

The request is JSON: ``model`` and ``output``, directories; ``calibration`` and ``evaluation``, lists of token ids;
``method``, ``scheme``, ``group_size``. OUTPUT gets ``answers.float16``, (tokens, vocabulary), the quantized model's
log-probabilities at every evaluation token but the first of a row, and ``figures.json``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Request:
    model: str
    calibration: list[list[int]]
    evaluation: list[list[int]]
    method: str
    scheme: str
    group_size: int
    output: str


def request() -> Request:
    return Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def answer(given: Request, peer: str, quantize: Callable[[], Any]) -> None:
    """Runs ``quantize``, which returns the model that computes as it would be served, and writes what was asked for."""
    cpu, wall = _processor_seconds(), time.monotonic()
    model = quantize()
    figures = {
        "cpu_seconds": _processor_seconds() - cpu,
        "wall_seconds": time.monotonic() - wall,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {name: version(name) for name in (peer, "transformers", "torch")},
    }
    _write_answers(given, model.eval())
    (Path(given.output) / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


@torch.no_grad()
def _write_answers(given: Request, model: Any) -> None:
    shape = (sum(len(ids) - 1 for ids in given.evaluation), model.config.vocab_size)
    written = np.memmap(Path(given.output) / "answers.float16", dtype=np.float16, mode="w+", shape=shape)
    place = 0
    for ids in given.evaluation:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        written[place : place + len(logits)] = logits.log_softmax(-1).half().numpy()
        place += len(logits)
    written.flush()


def _processor_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
