"""Runs inside llm-compressor's own environment: ``python llm_compressor_text.py REQUEST``; see text_exchange.py."""

from __future__ import annotations

from typing import Any

import torch
from llm_compressor_recipe import recipe
from llmcompressor import oneshot
from text_exchange import Request, answer, request
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer


def quantize(given: Request) -> Any:
    model = AutoModelForCausalLM.from_pretrained(given.model).eval()
    rows = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))} for ids in given.calibration]
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(given.model),
        dataset=DataLoader(rows, batch_size=1, collate_fn=lambda batch: batch[0]),  # type: ignore[arg-type]
        recipe=recipe(given.method, given.scheme, given.group_size),
        num_calibration_samples=len(rows),
        max_seq_length=2048,
        pipeline="sequential",
    )
    return model


def main() -> None:
    if not torch.accelerator.is_available():
        # llm-compressor 0.14 pins AWQ's cached inputs also where there is nothing to pin them for, and torch refuses.
        torch.Tensor.pin_memory = lambda tensor, *arguments: tensor
    given = request()
    answer(given, "llmcompressor", lambda: quantize(given))


if __name__ == "__main__":
    main()
