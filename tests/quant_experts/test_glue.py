"""A block run through the glue gives bit for bit what it gives inside the whole model, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSpeechSeq2Seq

from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.model.block_runner import StackNotCalled, capture_arguments, open_block_runner
from quant_experts.model.blueprint import load, open_blueprint
from quant_experts.model.carried import apart
from quant_experts.model.families.stack import Stack
from tests.every_type.check import VLMS, make_type
from tests.models import FAMILIES, VISION_FAMILIES, make_model
from tests.models_speech import audio_row
from tests.rows import image_row, text_row

CPU = torch.device("cpu")
ROWS = {"whisper": audio_row, **dict.fromkeys(VISION_FAMILIES, image_row)}


TYPES = {
    "bloom": "blocks are called h, and return tuples",
    "rembert": "embeddings are projected; a dense layer and a norm stand between the decoder and the head",
    "gemma4": "every block reads what is made of the embeddings, the last two also the keys and values of earlier ones",
    "llama4": "the head is inside the language model, not beside it",
    "gpt2": "layers are Conv1D",
}


def state(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def states_of(hidden: Tensor, stack: Stack) -> Tensor:
    """``hidden`` without what blocks hand on beside their states, which is NaN where there is none yet."""
    return apart(hidden, stack.state)[0] if stack.state is not None and stack.state.carried else hidden


def outputs_of_the_whole_model(model: Any, layers: Any, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(state(output))) for layer in layers
    ]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return outputs, logits


@pytest.mark.parametrize("family", [*FAMILIES, "whisper", *TYPES])
def test_blocks_one_by_one_are_the_whole_model(family: str, tmp_path: Path) -> None:
    # Four blocks, of which Qwen3-VL adds vision features after the first two.
    group = "image-text-to-text" if family in VLMS else "causal"
    directory = make_type(group, family, tmp_path) if family in TYPES else make_model(family, tmp_path, blocks=4)
    blueprint = open_blueprint(directory, device=CPU)
    row = ROWS.get(family, text_row)(1)
    sample = open_collator(directory, blueprint.model.config)(parse_row(1, row, tmp_path))
    kind = AutoModelForImageTextToText if family in VLMS else AutoModelForCausalLM
    kind = AutoModelForSpeechSeq2Seq if family == "whisper" else kind
    whole = kind.from_pretrained(directory)
    stack, language_model = blueprint.manifest.decoder, blueprint.language_model
    layers = whole.get_submodule(stack.module).get_submodule(stack.layers)
    expected, logits = outputs_of_the_whole_model(whole, layers, sample.inputs)

    for name, _ in (*blueprint.model.named_children(), *blueprint.model.named_parameters(recurse=False)):
        load(blueprint, name)
    originals = list(language_model.get_submodule(stack.layers))
    arguments, hidden = capture_arguments(blueprint.model, language_model, sample.inputs, stack)
    for block, output in enumerate(expected):
        with open_block_runner(language_model, block, stack) as runner:
            hidden = runner.run(arguments, hidden)
        assert torch.equal(states_of(hidden, stack), output), f"block {block}"
    with open_block_runner(language_model, len(expected), stack) as runner:
        last = runner.run(arguments, hidden)
    with torch.no_grad():
        assert torch.equal(blueprint.logits(last[0]), logits[0])
    assert list(language_model.get_submodule(stack.layers)) == originals


def test_earlier_blocks_need_no_weights(tmp_path: Path) -> None:
    directory = make_model("qwen3_vl", tmp_path, blocks=3)
    blueprint = open_blueprint(directory, device=CPU)
    for name in ("model.visual", "model.language_model.embed_tokens", "model.language_model.rotary_emb"):
        load(blueprint, name)
    sample = open_collator(directory, blueprint.model.config)(parse_row(1, image_row(1), tmp_path))
    arguments, hidden = capture_arguments(
        blueprint.model, blueprint.language_model, sample.inputs, blueprint.manifest.decoder
    )
    load(blueprint, "model.language_model.layers.2")
    with open_block_runner(blueprint.language_model, 2, blueprint.manifest.decoder) as runner:
        assert torch.isfinite(runner.run(arguments, hidden)).all()
    assert next(blueprint.language_model.layers[0].parameters()).is_meta


def test_deep_stack_features_reach_the_block_after(tmp_path: Path) -> None:
    directory = make_model("qwen3_vl", tmp_path, blocks=3)
    blueprint = open_blueprint(directory, device=CPU)
    for name, _ in blueprint.model.named_children():
        load(blueprint, name)
    sample = open_collator(directory, blueprint.model.config)(parse_row(1, image_row(1), tmp_path))
    arguments, hidden = capture_arguments(
        blueprint.model, blueprint.language_model, sample.inputs, blueprint.manifest.decoder
    )
    without = {**arguments, "deepstack_visual_embeds": None, "visual_pos_masks": None}
    with open_block_runner(blueprint.language_model, 1, blueprint.manifest.decoder) as runner:
        assert not torch.equal(runner.run(arguments, hidden), runner.run(without, hidden))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "whisper"])
def test_blocks_of_the_first_stack_one_by_one_are_the_whole_stack(family: str, tmp_path: Path) -> None:
    """And the first block begins with the states that are kept, whatever this machine would compute for them."""
    directory = make_model(family, tmp_path)
    blueprint = open_blueprint(directory, device=CPU)
    stack = blueprint.manifest.stacks("keep" if family == "whisper" else "quantize")[0]
    sample = open_collator(directory, blueprint.model.config)(parse_row(1, ROWS[family](1), tmp_path))
    for name, _ in blueprint.model.named_children():
        load(blueprint, name)
    module = blueprint.module(stack)
    arguments, hidden = capture_arguments(blueprint.model, module, sample.inputs, stack)
    expected, _ = outputs_of_the_whole_model(blueprint.model, module.get_submodule(stack.layers), sample.inputs)
    first = hidden
    for block, output in enumerate(expected):
        with open_block_runner(module, block, stack) as runner:
            hidden = runner.run(arguments, hidden)
        assert torch.equal(hidden, output), f"block {block}"
    with open_block_runner(module, 0, stack) as runner:
        assert not torch.equal(runner.run(arguments, first + 1), expected[0])


def test_a_row_without_an_image_goes_past_the_vision_tower(tmp_path: Path) -> None:
    directory = make_model("qwen2_vl", tmp_path)
    blueprint = open_blueprint(directory, device=CPU)
    load(blueprint, "model.language_model.embed_tokens")
    sample = open_collator(directory, blueprint.model.config)(parse_row(1, text_row(1), tmp_path))
    tower, language = blueprint.manifest.stacks("quantize")
    with pytest.raises(StackNotCalled):
        capture_arguments(
            blueprint.model, blueprint.module(tower), sample.inputs, tower, next_module=blueprint.module(language)
        )
