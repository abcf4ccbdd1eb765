"""A small configuration of any model type, made from the default one of its class: narrow, a block of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.every_type.defaults import INSTEAD

HIDDEN, HEADS, HEAD, VOCABULARY, BLOCKS = 128, 4, 32, 1024, 2

SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim_model", "embed_dim", "embedding_size"), HIDDEN),
    **dict.fromkeys(
        ("word_embed_proj_dim", "out_hidden_size", "embedding_dim", "lru_width", "attention_hidden_size"), HIDDEN
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "dim_ff", "ffn_hidden_size", "d_inner"), 192),
    **dict.fromkeys(
        ("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp", "shared_expert_intermediate_size"), 192
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers", "depth"), BLOCKS
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "num_global_attention_heads", "num_swa_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "kv_channels", "swa_head_dim", "global_head_dim", "dim_head", "d_kv", "d_head"), HEAD),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "encoder_vocab_size"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 96),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "moe_topk_group", "num_nextn_predict_layers"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 64),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), HEAD),
    **dict.fromkeys(("qk_rope_head_dim",), HEAD),
    "qk_head_dim": 2 * HEAD,
    "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 0,
    "sliding_window": 32,
    **dict.fromkeys(
        ("ssm_state_size", "mamba_d_state", "state_size", "linear_key_head_dim", "linear_value_head_dim"), 32
    ),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 64),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("rotary_dim", "rotary_ndims"), 16),
    "time_step_rank": 8,
    **dict.fromkeys(("image_size",), 56),
    "patch_size": 14,
    **dict.fromkeys(("image_seq_length", "mm_tokens_per_image"), 4),
    "num_position_embeddings": 64,
    "text_hidden_size": HIDDEN,
    "vision_soft_tokens_per_image": 4,
}
KEY_VALUE_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "num_global_key_value_heads", "num_query_groups")
DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = ("vision_config", "audio_config", "vq_config", "qformer_config", "vision_tower_config")


def tiny_config(kind: str) -> PreTrainedConfig:
    """Raises whatever the type's configuration raises."""
    default = CONFIG_MAPPING[kind]()
    return type(default)(**_shrunk(default.to_dict(), default))


def _shrunk(content: dict[str, Any], default: Any) -> dict[str, Any]:
    kinds = _kinds(content)
    blocks = max(BLOCKS, len(kinds)) if kinds else BLOCKS
    small: dict[str, Any] = {}
    for name, value in content.items():
        if name in ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "attention_layers"):
            continue
        if name == "per_layer_config":
            small[name] = {}
        elif isinstance(value, dict) and (name.endswith("_config") or "model_type" in value):
            small[name] = _shrunk(value, default) | (
                {"model_type": value["model_type"]} if "model_type" in value else {}
            )
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            small[name] = _rope(value)
        elif name in LISTS and isinstance(value, (list, tuple)):
            small[name] = _one_of_each(list(value), blocks)
        elif name == "head_dim" and value is None:
            small[name] = HEAD
        elif name == "num_heads" and "state_size" in content:  # Mamba 2: twice as wide inside
            small[name] = 2 * HEADS
        elif name == "num_key_value_heads" and value is None:
            small[name] = HEADS
        elif name in KEY_VALUE_HEADS and value is not None:
            latent = content.get("qk_rope_head_dim") is not None
            small[name] = 1 if value == 1 else HEADS if latent else 2
        elif name == "attention_types":  # GPT-Neo's own way to write a list
            small[name] = [[["global", "local"], 1]]
        elif (
            isinstance(value, (list, tuple)) and len(value) > blocks and len(value) == content.get("num_hidden_layers")
        ):
            small[name] = SIZES[name] if name in SIZES else list(value)[:blocks]
        elif name in DENSE_FIRST and value:
            small[name] = 1
        elif name in TOKENS or (name.endswith(("_token_id", "_token_index")) and isinstance(value, int)):
            small[name] = TOKENS.get(name, 3 + sum(map(ord, name)) % 7 if isinstance(value, int) else value)
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            small[name] = blocks if SIZES[name] == BLOCKS and "layer" in name else SIZES[name]
        else:
            small[name] = value
    return small | INSTEAD.get(content.get("model_type", ""), {})


def _kinds(content: dict[str, Any]) -> set[Any]:
    return {each for name in LISTS if isinstance(content.get(name), list) for each in content[name]}


def _one_of_each(values: list[Any], blocks: int) -> list[Any]:
    kinds = list(dict.fromkeys(values))
    return [kinds[min(place, len(kinds) - 1)] if place < len(kinds) else kinds[-1] for place in range(blocks)]


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    small = {name: _rope(each) if isinstance(each, dict) else each for name, each in value.items()}
    if "rope_type" in small and not any(isinstance(each, dict) for each in small.values()):
        rotary = int(HEAD * float(small.get("partial_rotary_factor") or 1)) // 2
        first = rotary // 4
        small["mrope_section"] = [first, (rotary - first) // 2, rotary - first - (rotary - first) // 2]
    return small
