"""What the default configurations of some types lack or contradict, by the ``model_type`` of the part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CHOSEN = {"num_experts_per_tok": 2}
IMAGE = {"<image>": 9, "<|extra_200|>": 8, **{f"IMGIMG{letter}Z": 10 + ord(letter) - 65 for letter in "ABCD"}}

SHARING = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}

INSTEAD: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": {"num_expert_group": 2, "qk_rope_head_dim": 32, "head_dim": 32},
    "chameleon": {"vocabulary_map": IMAGE},
    "chameleon_vqgan": {"base_channels": 32, "num_embeddings": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], **CHOSEN},
    "deepseek_v2": {"first_k_dense_replace": 1, **CHOSEN},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "first_k_dense_replace": 1, **CHOSEN},
    "dots3_note_vision_encoder": {"adapter_in_dim": 128, "adapter_out_dim": 128},
    "dots3_note_audio_encoder": {"adapter_input_size": 128, "adapter_out_dim": 128},
    "dots3_note_text": {"head_dim": 64, "index_head_dim": 32, "index_n_heads": 4},
    "emu3": {"vocabulary_map": IMAGE},
    "emu3_vqgan": {"base_channels": 32, "codebook_size": 64},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [96, 64], "rope_parameters": ROPE | {"mrope_section": [6, 6, 4]}},
    "falcon_h1": {"mamba_d_ssm": 256},
    "florence_vision": {
        "embed_dim": [32, 32, 64, 64],
        "num_heads": [2, 2, 4, 4],
        "num_groups": [2, 2, 4, 4],
        "depths": [1, 1, 1, 1],
        "projection_dim": 128,
    },
    # Four blocks, of which the last two read the keys and values of the first two.
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), SHARING),
    "gemma3n_text": {**SHARING, "intermediate_size": [192] * 4, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]},
    "glm5_next_text": {"qk_rope_head_dim": 0, "head_dim": 0, "qk_head_dim": 32, "index_head_dim": 32},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus_vqgan": {"base_channels": 32, "num_embeddings": 64},
    "longcat_flash": {"zero_expert_num": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mistral4": {"qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "qk_head_dim": 64, "head_dim": 64},
    "muse_spark_audio": {"hidden_sizes": [32, 64], "patch_sizes": [16, 6], "depths": [1, 1], "out_hidden_size": 128},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 5},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 5},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 500,
        "split_ngram_parts": 8,
    },
    "step3p5": {"sliding_window": 32},
    "xlm": {"emb_dim": 128},
    "xlstm": {"num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"n_mamba_heads": 4, "mamba_headdim": 64, "hybrid_layer_ids": [1]},
}
