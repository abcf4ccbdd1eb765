"""A tiny InternVL as its authors would have published it: the inverse of the mapping under test, written down apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

from demo.model import make_tokenizer
from tests.models import draw
from tests.models_vision import TOWER
from tests.sentencepiece_writer import CONTROL, NORMAL, UNKNOWN, byte_pieces, write_pieces

ADDED = ("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>")
HEADS, KEYS, WIDTH = 8, 2, 16
REMOTE_CODE = "raise SystemExit('remote code ran')\n"


def make_internvl_chat(directory: Path, language: str, *, seed: int = 0) -> InternVLForConditionalGeneration:
    """Write the original layout into ``directory``; returns the native model that it must equal.

    ``language``: InternLM2ForCausalLM or Qwen2ForCausalLM.
    """
    directory.mkdir(parents=True)
    internlm = language == "InternLM2ForCausalLM"
    context = _internlm_tokenizer(directory) if internlm else _qwen_tokenizer(directory)
    text = {
        "vocab_size": 1024,
        "hidden_size": HEADS * WIDTH,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0} if internlm else None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    torch.manual_seed(seed)
    config = InternVLConfig(
        text_config={"model_type": "llama" if internlm else "qwen2", **text},
        vision_config={**TOWER, "attention_bias": True, "use_qk_norm": internlm},
        image_token_id=context,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    native = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    draw(native, seed)
    tensors = original_tensors(native, internlm=internlm)
    half = sorted(tensors)[: len(tensors) // 2]
    shards = {
        "model-00001-of-00002.safetensors": half,
        "model-00002-of-00002.safetensors": sorted(set(tensors) - {*half}),
    }
    for name, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, directory / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in shards.items() for key in keys}}
    _write(directory / "model.safetensors.index.json", index)
    _write(directory / "config.json", _original_config(language, text, qk_norm=internlm))
    for name in ("modeling_internvl_chat.py", "configuration_internvl_chat.py", "tokenization_internlm2.py"):
        (directory / name).write_text(REMOTE_CODE)
    return native


def original_tensors(native: InternVLForConditionalGeneration, *, internlm: bool) -> dict[str, Tensor]:
    state = dict(native.state_dict())
    tensors = {"language_model.output.weight" if internlm else "language_model.lm_head.weight": state["lm_head.weight"]}
    tower = "model.vision_tower."
    for ours, theirs in {
        "cls_token": "class_embedding",
        "position_embeddings": "position_embedding",
        "patch_embeddings.projection.weight": "patch_embedding.weight",
        "patch_embeddings.projection.bias": "patch_embedding.bias",
    }.items():
        tensors[f"vision_model.embeddings.{theirs}"] = state[f"{tower}embeddings.{ours}"]
    for n in range(2):
        layer, block = f"{tower}encoder.layer.{n}.", f"vision_model.encoder.layers.{n}."
        for kind in ("weight", "bias"):
            fused = [state[f"{layer}attention.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{block}attn.qkv.{kind}"] = torch.cat(fused)
            tensors[f"{block}attn.proj.{kind}"] = state[f"{layer}attention.projection_layer.{kind}"]
            tensors[f"{block}norm1.{kind}"] = state[f"{layer}layernorm_before.{kind}"]
            tensors[f"{block}norm2.{kind}"] = state[f"{layer}layernorm_after.{kind}"]
            tensors[f"{block}mlp.fc1.{kind}"] = state[f"{layer}mlp.fc1.{kind}"]
            tensors[f"{block}mlp.fc2.{kind}"] = state[f"{layer}mlp.fc2.{kind}"]
        tensors[f"{block}ls1"], tensors[f"{block}ls2"] = state[f"{layer}lambda_1"], state[f"{layer}lambda_2"]
        if internlm:
            tensors[f"{block}attn.q_norm.weight"] = state[f"{layer}attention.q_norm.weight"]
            tensors[f"{block}attn.k_norm.weight"] = state[f"{layer}attention.k_norm.weight"]
    for number, module in {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}.items():
        for kind in ("weight", "bias"):
            tensors[f"mlp1.{number}.{kind}"] = state[f"model.multi_modal_projector.{module}.{kind}"]
    inside = {name.removeprefix("model.language_model."): t for name, t in state.items() if ".language_model." in name}
    tensors |= _internlm_tensors(inside) if internlm else {f"language_model.model.{n}": t for n, t in inside.items()}
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _internlm_tensors(inside: dict[str, Tensor]) -> dict[str, Tensor]:
    stem = "language_model.model."
    tensors = {
        f"{stem}tok_embeddings.weight": inside["embed_tokens.weight"],
        f"{stem}norm.weight": inside["norm.weight"],
    }
    for n in range(2):
        attention, mlp, block = f"layers.{n}.self_attn.", f"layers.{n}.mlp.", f"{stem}layers.{n}."
        rows = []
        for head in range(KEYS):
            queries = HEADS // KEYS * WIDTH
            rows.append(inside[f"{attention}q_proj.weight"][head * queries : (head + 1) * queries])
            rows.append(inside[f"{attention}k_proj.weight"][head * WIDTH : (head + 1) * WIDTH])
            rows.append(inside[f"{attention}v_proj.weight"][head * WIDTH : (head + 1) * WIDTH])
        tensors[f"{block}attention.wqkv.weight"] = torch.cat(rows)
        tensors[f"{block}attention.wo.weight"] = inside[f"{attention}o_proj.weight"]
        for ours, theirs in {"gate": "w1", "up": "w3", "down": "w2"}.items():
            tensors[f"{block}feed_forward.{theirs}.weight"] = inside[f"{mlp}{ours}_proj.weight"]
        tensors[f"{block}attention_norm.weight"] = inside[f"layers.{n}.input_layernorm.weight"]
        tensors[f"{block}ffn_norm.weight"] = inside[f"layers.{n}.post_attention_layernorm.weight"]
    return tensors


def _original_config(language: str, text: dict[str, Any], *, qk_norm: bool) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TOWER["image_size"],
        "llm_config": {"architectures": [language], "auto_map": {"AutoConfig": "boom.Boom"}, "bias": False, **text},
        "max_dynamic_patch": 3,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat" if qk_norm else "Hermes-2",
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-06,
            "norm_type": "layer_norm",
            "qk_normalization": qk_norm,
            "qkv_bias": True,
            **TOWER,
        },
    }


def _internlm_tokenizer(directory: Path) -> int:
    """A ``tokenizer.model`` whose last pieces are renamed by the configuration, as InternLM2's are."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    sentences = ["Which colour is the square at place 1?", "The square is red. The square is yellow.", "user assistant"]
    trained.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learned = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *byte_pieces()]
    pieces += [(piece, -float(rank), NORMAL) for rank, (piece, _) in enumerate(learned)]
    pieces += [(f"[UNUSED_TOKEN_{n}]", -1000.0 - n, NORMAL) for n in range(2)]
    write_pieces(directory / "tokenizer.model", pieces, prefix_space=False)
    first = len(pieces) - 2
    added = {str(first + n): {"content": token, "special": True} for n, token in enumerate(ADDED)}
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "tokenizer_class": "InternLM2Tokenizer",
        "added_tokens_decoder": {"0": {"content": "<unk>"}, "1": {"content": "<s>"}, "2": {"content": "</s>"}, **added},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": "{{ 'not for images' }}",
    }
    _write(directory / "tokenizer_config.json", settings)
    return first + ADDED.index("<IMG_CONTEXT>")


def _qwen_tokenizer(directory: Path) -> int:
    """``vocab.json``, ``merges.txt`` and ``added_tokens.json``, and no tokenizer.json."""
    saved = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
    vocabulary = {token: n for token, n in saved["vocab"].items() if not token.startswith("<|")}
    vocabulary = {token: n for n, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in saved["merges"]]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    _write(directory / "vocab.json", vocabulary)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    added = {name: len(vocabulary) + n for n, name in enumerate(names)}
    _write(directory / "added_tokens.json", added)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": {str(n): {"content": name, "special": True} for name, n in added.items()},
    }
    _write(directory / "tokenizer_config.json", settings)
    return added["<IMG_CONTEXT>"]


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def stored(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }
