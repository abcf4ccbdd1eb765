"""Runs inside llm-compressor's own environment: quantize once, answer the test questions, save the logits.

    python llm_compressor_run.py MODEL INPUTS METHOD SCHEME GROUP_SIZE OUTPUT

INPUTS is a torch file with ``calibration``, a list of model inputs, batches of one, and ``test``, a list of pairs:
model inputs, and the positions (rows, tokens - 1) bool whose logits are asked for. OUTPUT becomes a torch file with the
``logits`` of the quantized model, of the ``full`` one, and the ``seconds`` of the quantization. METHOD is ``rtn``,
``gptq``, ``awq`` or ``smoothquant:<strength>``. Nothing of this repository is imported: it is not installed there.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from llm_compressor_recipe import recipe
from llmcompressor import oneshot
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoTokenizer


@torch.no_grad()
def answers(model: Any, test: list[tuple[dict[str, Tensor], Tensor]]) -> Tensor:
    """(answer tokens, vocabulary) float32."""
    return torch.cat([model(**inputs, use_cache=False).logits[:, :-1][wanted].float() for inputs, wanted in test])


def main(directory: str, inputs: str, method: str, scheme: str, group_size: str, output: str) -> None:
    if not torch.accelerator.is_available():
        # llm-compressor 0.14 pins AWQ's cached inputs also where there is nothing to pin them for, and torch refuses.
        torch.Tensor.pin_memory = lambda tensor, *arguments: tensor
    given = torch.load(inputs)
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    full = answers(model, given["test"])
    rows = DataLoader(given["calibration"], batch_size=1, collate_fn=lambda batch: batch[0])
    started = time.monotonic()
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(directory),  # it insists on one, and never uses it
        dataset=None if method == "rtn" else rows,
        recipe=recipe(method, scheme, int(group_size)),
        num_calibration_samples=len(given["calibration"]),
        max_seq_length=2048,
        pipeline="sequential" if method != "rtn" else "datafree",
        sequential_targets=["Qwen2VLDecoderLayer"],
    )
    seconds = time.monotonic() - started
    torch.save({"logits": answers(model, given["test"]), "full": full, "seconds": seconds}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
