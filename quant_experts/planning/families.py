"""The model types that a plan supports, with what it has to know of each: input groups, and names in files.

A run finds stacks and groups in the model, which needs torch. A plan has them from this table, or for the types of
``known_types`` from the names of the tensors (``found_groups``). ``tests/planning/test_families.py`` and
``test_found_groups.py`` hold both against the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quant_experts.planning import stacks
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.known_types import KNOWN_TYPES
from quant_experts.planning.stacks import Groups, Stack

DECODER: Groups = (
    ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", "o", ("o_proj",)),
    ("mlp", "gate_up", ("gate_proj", "up_proj")),
    ("mlp", "down", ("down_proj",)),
)
FUSED: Groups = (
    ("self_attn", "qkv", ("qkv_proj",)),
    ("self_attn", "o", ("o_proj",)),
    ("mlp", "gate_up", ("gate_up_proj",)),
    ("mlp", "down", ("down_proj",)),
)
OPT: Groups = (
    ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", "o", ("out_proj",)),
    ("", "fc1", ("fc1",)),
    ("", "fc2", ("fc2",)),
)

STACKS = (
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.decoder.",
    "decoder.",
    "model.",
    "",
)
"""What may stand before ``layers.<n>.`` of the language model on disk, whichever release wrote the files."""


@dataclass(frozen=True)
class Family:
    """``model_class``: what config.json must name. ``stack``: module path of the decoder blocks in memory. ``vision``:
    the model takes images. ``tied``: whether the head is the embeddings where config.json does not say.
    ``any_text``: the language model is one of several; its ``model_type`` where config.json names none. ``tower``: the
    vision tower, where it can be quantized; ``encoder``: a stack whose output the decoder reads; ``memory``: see
    ``Stack``, of the decoder. ``head``: path of the output head in memory. ``is_found``: groups are told from the names
    in the files (``found_groups.py``), ``stack`` is the path of the list of blocks, and ``groups`` is not looked at."""

    model_class: str
    stack: str
    vision: bool = False
    groups: Groups = DECODER
    tied: bool = False
    any_text: str | None = None
    tower: Stack | None = None
    encoder: Stack | None = None
    memory: tuple[str, ...] = ()
    head: str = "lm_head"
    is_found: bool = False

    @property
    def decoder(self) -> Stack:
        """The last stack."""
        name, depth = ("language model", "num_hidden_layers") if self.encoder is None else ("decoder", "decoder_layers")
        return Stack(name, f"{self.stack}.layers", self.groups, memory=self.memory, depth=(depth,))

    def stacks(self, vision: str = "keep") -> tuple[Stack, ...]:
        """Those that are walked, in the order in which the model runs them. ``vision``: keep or quantize."""
        return stacks.in_order(self.tower, self.encoder, self.decoder, vision=vision)


MULTIMODAL = "model.language_model"

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", MULTIMODAL, vision=True, tower=stacks.QWEN2_VL),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", MULTIMODAL, vision=True, tower=stacks.QWEN2_5_VL),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", MULTIMODAL, vision=True, tower=stacks.QWEN3_VL),
    "llava": Family("LlavaForConditionalGeneration", MULTIMODAL, vision=True, any_text="llama"),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration", MULTIMODAL, vision=True, any_text="qwen2"),
    "gemma3": Family("Gemma3ForConditionalGeneration", MULTIMODAL, vision=True, tied=True),
    "internvl": Family(
        "InternVLForConditionalGeneration",
        MULTIMODAL,
        vision=True,
        tied=True,
        any_text="qwen2",
        tower=stacks.INTERNVL,
    ),
    "llama": Family("LlamaForCausalLM", "model"),
    "qwen2": Family("Qwen2ForCausalLM", "model"),
    "qwen3": Family("Qwen3ForCausalLM", "model"),
    "mistral": Family("MistralForCausalLM", "model"),
    "gemma": Family("GemmaForCausalLM", "model", tied=True),
    "gemma2": Family("Gemma2ForCausalLM", "model", tied=True),
    "gemma3_text": Family("Gemma3ForCausalLM", "model", tied=True),
    "phi3": Family("Phi3ForCausalLM", "model", groups=FUSED),
    "opt": Family("OPTForCausalLM", "model.decoder", groups=OPT, tied=True),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "model.decoder",
        groups=stacks.WHISPER_DECODER,
        tied=True,
        encoder=stacks.WHISPER_ENCODER,
        memory=("encoder_attn.kv",),
        head="proj_out",
    ),
}
FAMILIES |= {
    kind: Family(model_class, blocks, vision=vision, tied=tied, is_found=True)
    for kind, model_class, blocks, vision, tied in KNOWN_TYPES
    if kind not in FAMILIES
}
ORIGINALS = {"internvl_chat": "InternVLChatModel"}
"""Layouts that are read as one of the families above."""


def family_of(config: Mapping[str, Any]) -> Family:
    """Raises Unreadable: with the list of supported ones, or with what this model has that its family's walk lacks."""
    kind = config.get("model_type")
    if kind == "internvl_chat":
        return Family("InternVLChatModel", MULTIMODAL, vision=True, tower=stacks.INTERNVL)
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    names = [*(name for name, known in FAMILIES.items() if not known.is_found), *ORIGINALS]
    families = f"{', '.join(names)} and {len(FAMILIES) + len(ORIGINALS) - len(names)} others (docs/models.md)"
    if family is None:
        raise Unreadable(
            "unsupported_model", f"config.json: model_type {kind!r} is not supported; supported: {families}"
        )
    architectures = config.get("architectures") or [family.model_class]
    if not isinstance(architectures, list) or family.model_class not in architectures:
        raise Unreadable(
            "unsupported_model",
            f"config.json: architecture {architectures} is not supported; expected {family.model_class}",
        )
    if kind == "opt" and config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
        raise Unreadable("unsupported_model", "config.json: OPT models that project their embeddings are not supported")
    return family if family.any_text is None else _with_text_groups(config, family)


def _with_text_groups(config: Mapping[str, Any], family: Family) -> Family:
    """The groups of the language model inside a model that may have any."""
    text = config.get("text_config")
    inside = text.get("model_type", family.any_text) if isinstance(text, dict) else family.any_text
    texts = {name: text for name, text in FAMILIES.items() if text.stack == "model" and not text.is_found}
    if inside not in texts:
        raise Unreadable(
            "unsupported_model",
            f"config.json: language model {inside!r} inside it is not supported; supported: {', '.join(texts)}",
        )
    return replace(family, groups=texts[inside].groups)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the language model."""
    for name in ("text_config", "llm_config"):
        part = config.get(name)
        if isinstance(part, dict):
            return {**config, **part}
    return config


def kinds_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """``model_type`` of the model, and of the language model inside it."""
    return tuple(dict.fromkeys((str(config.get("model_type")), str(text_config(config).get("model_type")))))
