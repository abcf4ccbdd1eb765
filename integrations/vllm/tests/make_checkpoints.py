"""Checkpoints for the plugin's tests, with what transformers answers.

    python -m integrations.vllm.tests.make_checkpoints OUT [NAME ...]

It runs in the project's environment; the tests themselves run in vLLM's. Each checkpoint is a tiny real model whose
experts are drawn. Beside it lies ``answers.json``: for each dtype of the computation, prompts, the greedy continuation
by transformers, and for each of its tokens how far the two most likely ones are apart.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["QE_KERNELS"] = "reference"

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.serving import drawn
from quant_experts.calibration.processor import load_processor
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.rotation import rotation_of
from quant_experts.model.groups import GroupPlan
from quant_experts.spec.schemes import parse_scheme
from tests.models_vision import VISION_FAMILIES
from tests.quant_experts.checkpoints import quantized_parts, written
from tests.rows import data_uri, picture

CASES: dict[str, tuple[str, str, int, bool]] = {
    "llama": ("llama", "W4A8", 4, False),
    "llama-rotated": ("llama", "W4A4", 4, True),
    "llama-plain": ("llama", "W4A16", 0, False),
    "qwen2": ("qwen2", "W3A16", 4, True),
    "qwen3": ("qwen3", "W8A8", 4, False),
    "mistral": ("mistral", "W4A6", 4, True),
    "gemma3_text": ("gemma3_text", "W4A8", 4, False),
    "qwen2_vl": ("qwen2_vl", "W4A8", 4, False),
    "qwen2_vl-rotated": ("qwen2_vl", "W4A6", 4, True),
    "qwen2_5_vl": ("qwen2_5_vl", "W4A6", 4, False),
    "qwen3_vl": ("qwen3_vl", "W4A8", 4, True),
    "internvl": ("internvl", "W4A8", 4, False),
    "llava": ("llava", "W4A8", 4, False),
}
"""Name: family, scheme, rank of the experts (0: none), whether adapters are int8. The base of those that end in
``ROTATED`` reads rotated inputs."""
ROTATED = "-rotated"
NEW_TOKENS, LENGTHS = 12, (3, 17, 40, 90)
DTYPES = ("float32", "bfloat16")


def group(name: str, plan: GroupPlan, weights: list[Tensor], seed: int) -> FittedGroup:
    _, scheme, rank, int8 = CASES[name]
    found = drawn(plan, weights, parse_scheme(scheme), rank, int8)
    if not name.endswith(ROTATED):
        return found
    return replace(found, rotation=rotation_of(plan.width, found.activation_bits), smoothing="rotation")


def answer(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    prompt = inputs["input_ids"][0].tolist()
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    done = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    logits = torch.stack(done.logits)[:, 0].float()
    best = logits.topk(2).values
    return {
        "prompt": prompt,
        "tokens": done.sequences[0, len(prompt) :].tolist(),
        "margins": ((best[:, 0] - best[:, 1]) / logits.std()).tolist(),
    }


def about_images(model: Any, source: Path) -> Iterator[dict[str, Any]]:
    """Questions about one picture and about two, as a chat of the OpenAI API.

    Their sizes need no resizing: torchvision, which vLLM has, and Pillow resize to values that differ by 1/255."""
    processor = load_processor(source, model.config)
    for number, sizes in enumerate([[(56, 56)], [(112, 56)], [(56, 56), (56, 112)]]):
        pictures = [picture(seed=10 * number + i, size=size) for i, size in enumerate(sizes)]
        question = {"type": "text", "text": f"Which colour is the square at place {number}?"}
        chat = [{"role": "user", "content": [*({"type": "image"} for _ in pictures), question]}]
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
        inputs = dict(processor(text=[text], images=[images], return_tensors="pt"))
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        urls = [{"type": "image_url", "image_url": {"url": data_uri(data)}} for data in pictures]
        yield {**answer(model, inputs), "messages": [{"role": "user", "content": [*urls, question]}]}


def answers_of(family: str, checkpoint: Path, source: Path, dtype: torch.dtype) -> list[dict[str, Any]]:
    kind = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    model = kind.from_pretrained(checkpoint, dtype=dtype).eval()
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(260, 900, (1, n), generator=random) for n in LENGTHS]
    answers = [answer(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}) for ids in prompts]
    return [*answers, *about_images(model, source)] if family in VISION_FAMILIES else answers


def main(out: Path, names: list[str]) -> None:
    for name in names or CASES:
        family = CASES[name][0]
        parts = quantized_parts(family, out / name / "work", draw=functools.partial(group, name))
        checkpoint = out / name / "checkpoint"
        written(parts, checkpoint)
        answers = {
            dtype: answers_of(family, checkpoint, parts.arguments["source"], getattr(torch, dtype)) for dtype in DTYPES
        }
        (out / name / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
        print(name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
