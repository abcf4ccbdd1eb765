"""The headers of models as large as they get, and no weights: sparse files take no room."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

QWEN2_VL_72B = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 8192, "patch_size": 14, "spatial_merge_size": 2},
}
SHARD_BYTES = 4_000_000_000


def write_72b(directory: Path) -> Path:
    """Names and shapes of Qwen2-VL-72B: 145 GB of holes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(QWEN2_VL_72B))
    for name in (
        "tokenizer.json",
        "preprocessor_config.json",
        "chat_template.json",
    ):  # a plan asks whether they are there
        (directory / name).write_text("{}")
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in _shapes().items():
        size = 2 * math.prod(shape)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_sparse(directory / name, tensors)
        weight_map.update(dict.fromkeys(tensors, name))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def _shapes() -> dict[str, tuple[int, ...]]:
    d, inner, kv = 8192, 29568, 1024
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (152064, d)}
    for block in range(80):
        at = f"model.layers.{block}"
        for layer, out in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{at}.self_attn.{layer}.weight"] = (out, d)
            shapes[f"{at}.self_attn.{layer}.bias"] = (out,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (d, d)
        shapes[f"{at}.mlp.gate_proj.weight"] = shapes[f"{at}.mlp.up_proj.weight"] = (inner, d)
        shapes[f"{at}.mlp.down_proj.weight"] = (d, inner)
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (d,)
    for block in range(32):
        at = f"visual.blocks.{block}"
        for layer, out, width in (
            ("attn.qkv", 3840, 1280),
            ("attn.proj", 1280, 1280),
            ("mlp.fc1", 5120, 1280),
            ("mlp.fc2", 1280, 5120),
        ):
            shapes[f"{at}.{layer}.weight"], shapes[f"{at}.{layer}.bias"] = (out, width), (out,)
    shapes["visual.patch_embed.proj.weight"] = (1280, 3, 2, 14, 14)
    shapes["visual.merger.mlp.0.weight"], shapes["visual.merger.mlp.2.weight"] = (5120, 5120), (d, 5120)
    return {**shapes, "model.norm.weight": (d,), "lm_head.weight": (152064, d)}


def _write_sparse(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    described, offset = {}, 0
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        described[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(described).encode()
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        out.truncate(8 + len(header) + offset)
