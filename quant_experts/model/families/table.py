"""Every supported ``model_type``. Families with more than a line of their own have a file beside this one."""

from __future__ import annotations

from quant_experts.model.families import internvl_chat, towers
from quant_experts.model.families.family import Family
from quant_experts.model.families.opt import OPT
from quant_experts.model.families.stack import Groups
from quant_experts.model.families.whisper import WHISPER

FUSED_GROUPS: Groups = (
    ("self_attn", "qkv", ("qkv_proj",)),
    ("self_attn", "o", ("o_proj",)),
    ("mlp", "gate_up", ("gate_up_proj",)),
    ("mlp", "down", ("down_proj",)),
)

PROJECTOR = "model.multi_modal_projector"

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        "Qwen2VLForConditionalGeneration", "model.language_model", "model.visual", tower=towers.QWEN2_VL
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration", "model.language_model", "model.visual", tower=towers.QWEN2_5_VL
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration", "model.language_model", "model.visual", tower=towers.QWEN3_VL
    ),
    "llava": Family(
        "LlavaForConditionalGeneration", "model.language_model", "model.vision_tower", (PROJECTOR,), text_model="llama"
    ),
    "llava_onevision": Family(
        "LlavaOnevisionForConditionalGeneration",
        "model.language_model",
        "model.vision_tower",
        (PROJECTOR, "model.image_newline"),
        text_model="qwen2",
    ),
    "gemma3": Family("Gemma3ForConditionalGeneration", "model.language_model", "model.vision_tower", (PROJECTOR,)),
    "internvl": Family(
        "InternVLForConditionalGeneration",
        "model.language_model",
        "model.vision_tower",
        (PROJECTOR,),
        tower=towers.INTERNVL,
        text_model="qwen2",
    ),
    "llama": Family("LlamaForCausalLM", "model"),
    "qwen2": Family("Qwen2ForCausalLM", "model"),
    "qwen3": Family("Qwen3ForCausalLM", "model"),
    "mistral": Family("MistralForCausalLM", "model"),
    "gemma": Family("GemmaForCausalLM", "model"),
    "gemma2": Family("Gemma2ForCausalLM", "model", soft_cap=True),
    "gemma3_text": Family("Gemma3ForCausalLM", "model", soft_cap=True),
    "phi3": Family("Phi3ForCausalLM", "model", groups=FUSED_GROUPS),
    "opt": OPT,
    "whisper": WHISPER,
}

ORIGINALS = {internvl_chat.MODEL_TYPE: internvl_chat.ARCHITECTURE}
"""``model_type`` → architecture of layouts that are read as one of the families above."""
