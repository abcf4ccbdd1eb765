"""The untrained model: Qwen2-VL's architecture at 2.2 million parameters, with a tokenizer of one token per word."""

from __future__ import annotations

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
from demo.model import CHAT_TEMPLATE, SPECIAL

HIDDEN, BLOCKS, HEADS, KV_HEADS, INTERMEDIATE = 192, 4, 6, 2, 512
VISION_WIDTH, VISION_BLOCKS = 96, 2
VOCABULARY = 512


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of questions and answers is one token.

    Words come with and without a space before them, because an answer's first word follows a line break.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [*COLOURS, *NUMBERS, *(str(n) for n in range(37))]
    sentences = [
        *(f"{word}\n {word}" for word in words),
        *(f"Which digit is at the {place}? Which colour is the {place} square?" for place in PLACES),
        "Describe the board. How many squares are red? What is the sum of the digits? What is the largest digit?",
        "system user assistant\n",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2VLForConditionalGeneration:
    """Random weights, float32."""
    token = tokenizer.convert_tokens_to_ids
    section = HIDDEN // HEADS // 8
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": 4096,
            "max_window_layers": BLOCKS,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [section, section * 3 // 2, section * 3 // 2],
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": VISION_BLOCKS,
            "embed_dim": VISION_WIDTH,
            "hidden_size": HIDDEN,
            "num_heads": 4,
            "mlp_ratio": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


def save_repository(
    model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> Path:
    """Weights in bfloat16, tokenizer with chat template, image processor: what a hub repository has."""
    directory.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(directory)
    return directory
