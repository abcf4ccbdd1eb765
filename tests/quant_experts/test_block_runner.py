"""Blocks that are run one by one, with stored states for those before, give what the whole model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from quant_experts.model.block_runner import capture_arguments, open_block_runner
from quant_experts.model.manifest import manifest_of
from quant_experts.model.mixtures import unstack_mixtures
from tests.every_type.check import CAUSAL, auto_class
from tests.every_type.tiny import tiny_config
from tests.models import draw


def inputs_of(kind: str, model: Any) -> dict[str, Tensor]:
    tokens = torch.arange(20, 37).unsqueeze(0)
    if kind != "chameleon":
        return {"input_ids": tokens}
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = model.model.get_image_features(pixels, return_dict=True).pooler_output
    places = torch.full((1, features.shape[-2]), model.model.vocabulary_mapping.image_token_id)
    return {"input_ids": torch.cat([places, tokens], 1), "pixel_values": pixels}


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "chameleon",  # its module runs the tower too
        "deepseek_v4",  # blocks read the tokens
        "cpmant",  # takes no embeddings, and puts a prompt before them
        "gemma4_text",  # blocks share keys and values
        "hy_v4",  # blocks hand on what an indexer chose
    ],
)
@torch.no_grad()
def test_block_by_block_is_the_whole_model(kind: str) -> None:
    config = tiny_config(kind)
    auto = auto_class("causal" if kind in CAUSAL else "image-text-to-text")
    if kind == "chameleon":
        config.vq_config.num_embeddings = 4  # as many as its vocabulary has names for
    with torch.device("meta"):
        empty = auto.from_config(config).eval()
    unstack_mixtures(empty)
    stack = manifest_of(empty).decoder
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    draw(model, 0)
    module, inputs = model.get_submodule(stack.module), inputs_of(kind, model)
    arguments, states = capture_arguments(model, module, inputs, stack)
    for block in range(len(module.get_submodule(stack.layers)) + 1):
        with open_block_runner(module, block, stack) as runner:
            states = runner.run(arguments, states)
    expected = module(**inputs, use_cache=False).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
