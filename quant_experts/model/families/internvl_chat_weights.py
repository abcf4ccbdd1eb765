"""Tensors of an original InternVL repository under the names, and in the parts, that the native architecture has.

Fused projections are cut when they are read: the vision tower's ``attn.qkv`` is query over key over value; InternLM2's
``wqkv`` has, for each key-value head, its query heads, then its key, then its value (rows in that order).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

Cut = Callable[[Tensor], Tensor]

MARK = "vision_model.embeddings.class_embedding"
"""A tensor that every original repository has, and no native one."""

RENAMED: tuple[tuple[str, str], ...] = (
    (r"vision_model\.embeddings\.class_embedding", r"model.vision_tower.embeddings.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", r"model.vision_tower.embeddings.position_embeddings"),
    (
        r"vision_model\.embeddings\.patch_embedding\.(\w+)",
        r"model.vision_tower.embeddings.patch_embeddings.projection.\1",
    ),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.(\w+)",
        r"model.vision_tower.encoder.layer.\1.attention.projection_layer.\2",
    ),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.([qk]_norm)\.(\w+)",
        r"model.vision_tower.encoder.layer.\1.attention.\2.\3",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.norm1\.(\w+)", r"model.vision_tower.encoder.layer.\1.layernorm_before.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.norm2\.(\w+)", r"model.vision_tower.encoder.layer.\1.layernorm_after.\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.ls([12])", r"model.vision_tower.encoder.layer.\1.lambda_\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"model.vision_tower.encoder.layer.\1.mlp.\2.\3"),
    (r"mlp1\.0\.(\w+)", r"model.multi_modal_projector.layer_norm.\1"),
    (r"mlp1\.1\.(\w+)", r"model.multi_modal_projector.linear_1.\1"),
    (r"mlp1\.3\.(\w+)", r"model.multi_modal_projector.linear_2.\1"),
    (r"language_model\.model\.tok_embeddings\.weight", r"model.language_model.embed_tokens.weight"),
    (r"language_model\.(?:output|lm_head)\.weight", r"lm_head.weight"),
    (
        r"language_model\.model\.layers\.(\d+)\.attention\.wo\.(\w+)",
        r"model.language_model.layers.\1.self_attn.o_proj.\2",
    ),
    (
        r"language_model\.model\.layers\.(\d+)\.feed_forward\.w1\.weight",
        r"model.language_model.layers.\1.mlp.gate_proj.weight",
    ),
    (
        r"language_model\.model\.layers\.(\d+)\.feed_forward\.w3\.weight",
        r"model.language_model.layers.\1.mlp.up_proj.weight",
    ),
    (
        r"language_model\.model\.layers\.(\d+)\.feed_forward\.w2\.weight",
        r"model.language_model.layers.\1.mlp.down_proj.weight",
    ),
    (
        r"language_model\.model\.layers\.(\d+)\.attention_norm\.weight",
        r"model.language_model.layers.\1.input_layernorm.weight",
    ),
    (
        r"language_model\.model\.layers\.(\d+)\.ffn_norm\.weight",
        r"model.language_model.layers.\1.post_attention_layernorm.weight",
    ),
    (r"language_model\.model\.(.+)", r"model.language_model.\1"),
)
"""(key on disk, native name); the first that fits the whole key is taken, so the last one is for Qwen2 and Llama."""

VISION_QKV = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(\w+)")
LANGUAGE_QKV = re.compile(r"language_model\.model\.layers\.(\d+)\.attention\.wqkv\.(\w+)")


def native_parts(keys: Iterable[str], config: Any) -> Iterator[tuple[str, str, Cut | None]]:
    """(key on disk, native name, how to cut the native tensor out of it; None for all of it).

    ``config``: an InternVLConfig. A key that no name is known for comes back under itself.
    """
    text = config.text_config
    heads = text.num_key_value_heads
    queries = text.num_attention_heads // heads
    for key in keys:
        if match := VISION_QKV.fullmatch(key):
            stem = f"model.vision_tower.encoder.layer.{match[1]}.attention"
            for part, layer in enumerate(("q_proj", "k_proj", "v_proj")):
                yield key, f"{stem}.{layer}.{match[2]}", _third(part)
        elif match := LANGUAGE_QKV.fullmatch(key):
            stem = f"model.language_model.layers.{match[1]}.self_attn"
            yield key, f"{stem}.q_proj.{match[2]}", _heads(heads, queries, slice(0, queries))
            yield key, f"{stem}.k_proj.{match[2]}", _heads(heads, queries, slice(queries, queries + 1))
            yield key, f"{stem}.v_proj.{match[2]}", _heads(heads, queries, slice(queries + 1, queries + 2))
        else:
            yield key, _renamed(key), None


def _renamed(key: str) -> str:
    for pattern, name in RENAMED:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return key


def _third(part: int) -> Cut:
    """fused: (3 d, ...); returns (d, ...). Raises RuntimeError when the rows do not divide."""

    def cut(fused: Tensor) -> Tensor:
        return fused.reshape(3, -1, *fused.shape[1:])[part].clone()

    return cut


def _heads(heads: int, queries: int, heads_of_part: slice) -> Cut:
    """fused: (heads * (queries + 2) * head width, ...); returns the rows ``heads_of_part`` of every key-value head."""

    def cut(fused: Tensor) -> Tensor:
        return fused.reshape(heads, queries + 2, -1, *fused.shape[1:])[:, heads_of_part].flatten(0, 2).clone()

    return cut
