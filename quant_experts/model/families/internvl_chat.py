"""InternVL as its authors published it (``internvl_chat``), read as the native architecture. No remote code is run.

The original repositories hold Python for the model and, most of them, for the tokenizer. Everything that this Python
would do is known: the configuration is the native one under other names, the tensors are renamed and cut
(``internvl_chat_weights.py``), the tokenizer is rebuilt from its data, the processor is the native one. What comes out
is a directory that looks like a native repository, with links to the original shards; a checkpoint made from it is
native.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from quant_experts.errors import InvalidModel, UnsupportedModel
from quant_experts.model.families.internvl_chat_tokenizer import CONTEXT, native_tokenizer

MODEL_TYPE, ARCHITECTURE = "internvl_chat", "InternVLChatModel"

LANGUAGE_MODELS = {
    "InternLM2ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
TURN_ENDS = {"Hermes-2": "<|im_end|>", "internlm2-chat": "<|im_end|>", "internvl2_5": "<|im_end|>\n"}
"""What ends a turn in each chat template that the authors name; all of them are ChatML."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}TURN_END{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("attention_bias", "sliding_window", "use_sliding_window", "max_window_layers"),
)
VISION_KEYS = {
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "hidden_dropout_prob",
    **{
        same: same
        for same in (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
            *("patch_size", "image_size", "hidden_act", "norm_type", "layer_norm_eps", "attention_dropout"),
        )
    },
}
VISION_DEFAULTS = {
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "qkv_bias": False,
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qk_normalization": True,
    "num_hidden_layers": 48,
    "norm_type": "rms_norm",
}
"""What the authors' configuration class fills in, where that differs from the native one."""

IMAGE_MEAN, IMAGE_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def native_directory(model: Path, scratch: Path) -> Path:
    """``model`` itself, or for an original InternVL repository a native directory made at ``scratch``.

    Raises InvalidModel or UnsupportedModel naming what cannot be read.
    """
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return model  # whoever opens it says what is wrong
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        return model
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    end = _turn_end(config)
    tokenizer = native_tokenizer(model)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("TURN_END", end)
    tokenizer.save_pretrained(scratch)
    native = native_config(config, image_token=tokenizer.convert_tokens_to_ids(CONTEXT))
    files: dict[str, Any] = {
        "config.json": native,
        "generation_config.json": _generation(tokenizer, end),
        "processor_config.json": {
            "processor_class": "InternVLProcessor",
            "image_seq_length": native["image_seq_length"],
        },
        "preprocessor_config.json": _images(config),
    }
    for name, content in files.items():
        (scratch / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for pattern in ("*.safetensors", "*.safetensors.index.json", "LICENSE*", "NOTICE*"):
        for path in model.glob(pattern):
            (scratch / path.name).symlink_to(path.resolve())
    return scratch


def native_config(config: dict[str, Any], *, image_token: int) -> dict[str, Any]:
    """The native config.json of an original one. ``image_token``: the id that stands for one part of an image."""
    try:
        language, vision = dict(config["llm_config"]), {**VISION_DEFAULTS, **config["vision_config"]}
        architecture = (language.get("architectures") or ["none"])[0]
        text = {key: language[key] for key in TEXT_KEYS if key in language}
        ratio = float(config.get("downsample_ratio", 0.5))
        side = int(config.get("force_image_size") or vision["image_size"]) // int(vision["patch_size"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidModel(f"config.json is not that of an InternVL model: {type(error).__name__} {error}") from error
    if architecture not in LANGUAGE_MODELS:
        raise UnsupportedModel(
            f"config.json: language model {architecture} inside {ARCHITECTURE} is not supported; supported: "
            + ", ".join(LANGUAGE_MODELS)
        )
    if config.get("ps_version", "v1") != "v2":
        raise UnsupportedModel("config.json: ps_version other than v2 (InternVL before 2) is not supported")
    if "bias" in language:
        text["attention_bias"] = bool(language["bias"])
    native = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": {"model_type": LANGUAGE_MODELS[architecture], **text},
        "vision_config": {
            "model_type": "internvl_vision",
            **{name: vision[key] for key, name in VISION_KEYS.items() if key in vision},
        },
        "image_token_id": image_token,
        "image_seq_length": round(side**2 * ratio**2),
        "downsample_ratio": ratio,
        "vision_feature_layer": config.get("select_layer", -1),
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
    }
    dtype = config.get("dtype") or config.get("torch_dtype")
    return native if dtype is None else {**native, "dtype": dtype}


def _turn_end(config: dict[str, Any]) -> str:
    template = config.get("template")
    if template not in TURN_ENDS:
        raise UnsupportedModel(
            f"config.json: chat template {template!r} is not supported; supported: {', '.join(TURN_ENDS)}"
        )
    return TURN_ENDS[template]


def _generation(tokenizer: Any, end: str) -> dict[str, Any]:
    """The language model's own end token is not the one that ends a turn."""
    ends = {tokenizer.convert_tokens_to_ids(end.strip()), tokenizer.eos_token_id} - {None}
    return {"eos_token_id": sorted(ends), "pad_token_id": tokenizer.pad_token_id}


def _images(config: dict[str, Any]) -> dict[str, Any]:
    size = config.get("force_image_size") or config["vision_config"]["image_size"]
    has_tiles = bool(config.get("dynamic_image_size", False))
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "crop_to_patches": has_tiles,
        "min_patches": config.get("min_dynamic_patch", 1),
        "max_patches": config.get("max_dynamic_patch", 6) if has_tiles else 1,
    }
