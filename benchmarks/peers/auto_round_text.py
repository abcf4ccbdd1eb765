"""Runs inside AutoRound's own environment: ``python auto_round_text.py REQUEST``; see text_exchange.py. METHOD is the
number of its iterations.

Rows are cut to the length of the shortest, because AutoRound takes rows of one length; the rest of its recipe, batches
of 8 and its learning rates, is its default.
"""

from __future__ import annotations

from typing import Any

import torch
from auto_round import AutoRound
from text_exchange import Request, answer, request
from transformers import AutoModelForCausalLM, AutoTokenizer


def quantize(given: Request) -> Any:
    model = AutoModelForCausalLM.from_pretrained(given.model).eval()
    length = min(map(len, given.calibration))
    quantizer = AutoRound(
        model,
        AutoTokenizer.from_pretrained(given.model),
        scheme=given.scheme,
        group_size=given.group_size,
        dataset=[{"input_ids": torch.tensor([ids[:length]])} for ids in given.calibration],
        iters=int(given.method),
        seqlen=length,
        nsamples=len(given.calibration),
        enable_torch_compile=False,  # on a CPU the compiler costs minutes and this model's steps gain little
    )
    quantized, _ = quantizer.quantize()
    return quantized


def main() -> None:
    given = request()
    answer(given, "auto-round", lambda: quantize(given))


if __name__ == "__main__":
    main()
