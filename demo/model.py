"""A small Qwen2-VL made here: the real architecture, tokenizer and processor files; seeded weights, not trained.

The weights are random, so its replies are gibberish. What is real is everything that the service does to it. RMSNorm
weights are drawn log-normal, because in trained models a few channels carry activations far above the rest; without
that there would be nothing for the experts to find.

    python -m demo.model --output models/tiny-qwen2-vl
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.utils.logging import disable_progress_bar

from benchmarks.digits.boards import COLOURS, NUMBERS, PLACES
from demo.rows import PHOTOGRAPHS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the sentences of ``demo.rows``, with Qwen2-VL's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sentences = [
        *(f"The picture shows {caption}. What is in the picture?" for caption in PHOTOGRAPHS.values()),
        *(f"Which digit is at the {place}? The digit at the {place} is {n}." for place in PLACES for n in NUMBERS),
        *(f"Which colour is the {place} square? The {place} square is {c}." for place in PLACES for c in COLOURS),
        *(f"Describe the board. {c} {n}," for c in COLOURS for n in NUMBERS),
        "system user assistant\n",
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(sentences, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
        model_max_length=32768,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_qwen2_vl(
    directory: Path,
    *,
    seed: int = 0,
    hidden: int = 256,
    blocks: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 512,
    vocabulary: int = 1024,
    vision_depth: int = 2,
    vision_width: int = 64,
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "1GB",
) -> Path:
    """Write the model into ``directory`` as a hub repository has it, and return the directory.

    The head width, ``hidden / heads``, must be a multiple of 16: multimodal rotary embedding splits it in three.
    """
    tokenizer = make_tokenizer(vocabulary)
    token = tokenizer.convert_tokens_to_ids
    head_width = hidden // heads
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": blocks,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 4096,
            "max_window_layers": blocks,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [head_width // 8, head_width * 3 // 16, head_width * 3 // 16],
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_depth,
            "embed_dim": vision_width,
            "hidden_size": hidden,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).to(dtype)
    _draw_norms(model, seed)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    directory.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(directory)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=224 * 224).save_pretrained(directory)
    return directory


def _draw_norms(model: torch.nn.Module, seed: int) -> None:
    """Log-normal RMSNorm weights: a long tail of channels above the rest."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("layernorm.weight"):
                weight.copy_(torch.exp(0.6 * torch.randn(weight.shape, generator=random)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_qwen2_vl(arguments.output, hidden=arguments.hidden, blocks=arguments.blocks, seed=arguments.seed)
    print(f"a seeded Qwen2-VL in {arguments.output}")


if __name__ == "__main__":
    main()
