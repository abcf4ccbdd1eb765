"""Model directories as people have them: each made from a tiny model by what has happened to it since.

``CASES``: name → (family, tied, what happened to the directory).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"

Happened = Callable[[Path], None]


def tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(str(directory / SINGLE))


def store(directory: Path, held: dict[str, Tensor], name: str = SINGLE) -> None:
    save_file({key: tensor.contiguous() for key, tensor in held.items()}, str(directory / name), {"format": "pt"})


def edit(directory: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))


def nothing(directory: Path) -> None:
    """As it was saved."""


def own_head(directory: Path) -> None:
    """A training framework trained the head apart from the embeddings, and left config.json as it was."""
    held = tensors(directory)
    embeddings = next(tensor for key, tensor in held.items() if key.endswith("embed_tokens.weight"))
    random = torch.Generator().manual_seed(7)
    store(directory, {**held, HEAD: torch.randn(embeddings.shape, generator=random).to(embeddings.dtype) * 0.05})


def same_head(directory: Path) -> None:
    """A framework that knows no tying stored the same values twice."""
    held = tensors(directory)
    store(directory, {**held, HEAD: held[EMBEDDINGS].clone()})


def head_alone(directory: Path) -> None:
    """The other of the two names."""
    held = tensors(directory)
    store(directory, {HEAD: held.pop(EMBEDDINGS), **held})


def shard(directory: Path, *, listed: Callable[[str], bool] = lambda key: True) -> None:
    """Two shards and their index, in place of the single file. ``listed``: keys that the index knows."""
    held = tensors(directory)
    (directory / SINGLE).unlink()
    keys = sorted(held)
    weight_map = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        store(directory, {key: held[key] for key in part}, name)
        weight_map |= {key: name for key in part if listed(key)}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def own_head_in_shards(directory: Path) -> None:
    own_head(directory)
    shard(directory)


def index_without_the_head(directory: Path) -> None:
    """The head was added to a shard, and the index stayed as it was."""
    own_head(directory)
    shard(directory, listed=lambda key: key != HEAD)


def stale_index(directory: Path) -> None:
    """The index of an earlier download, whose shards are gone."""
    weight_map = dict.fromkeys(tensors(directory), "model-00001-of-00002.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def stale_shards(directory: Path) -> None:
    """The shards of an earlier download too, of another model."""
    held = tensors(directory)
    stale = {key: torch.randn(tensor.shape).to(tensor.dtype) for key, tensor in held.items()}
    store(directory, stale)
    shard(directory)
    store(directory, held)


def adapters(directory: Path) -> None:
    """What training left: a LoRA adapter, the trainer's state, the index of pickle weights that are gone."""
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing", "r": 4, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    store(directory, {"base_model.model.lora_A.weight": torch.ones(4, 4)}, "adapter_model.safetensors")
    for name in ("trainer_state.json", "pytorch_model.bin.index.json", "all_results.json"):
        (directory / name).write_text("{}")


def tokens_added(directory: Path) -> None:
    """Tokens were added to the tokenizer, and the embeddings were resized to a round number."""
    held = tensors(directory)
    for key in (HEAD, EMBEDDINGS):
        held[key] = torch.cat([held[key], held[key][:64].clone()])
    store(directory, held)
    edit(directory, "config.json", lambda config: config.update(vocab_size=held[EMBEDDINGS].shape[0]))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.save_pretrained(directory)


def renamed(*pairs: tuple[str, str]) -> Happened:
    def rename(directory: Path) -> None:
        held = tensors(directory)
        for old, new in pairs:
            held = {(new + key[len(old) :] if key.startswith(old) else key): tensor for key, tensor in held.items()}
        store(directory, held)

    return rename


def body_without_prefix(directory: Path) -> None:
    """The body alone was saved: no prefix, no head."""
    store(directory, {key.removeprefix("model."): tensor for key, tensor in tensors(directory).items()})


def old_rotary_tables(directory: Path) -> None:
    """Buffers that transformers 4 stored and 5 computes."""
    held = tensors(directory)
    for block in range(2):
        held[f"model.layers.{block}.self_attn.rotary_emb.inv_freq"] = torch.rand(16)
    store(directory, held)


def stored_in_float32(directory: Path) -> None:
    store(directory, {key: tensor.float() for key, tensor in tensors(directory).items()})


def torch_dtype(directory: Path) -> None:
    """As transformers 4 wrote it."""
    edit(directory, "config.json", lambda config: config.update(torch_dtype=config.pop("dtype")))


def no_dtype(directory: Path) -> None:
    edit(directory, "config.json", lambda config: config.pop("dtype"))


def hub_cache(directory: Path) -> None:
    """Every file a link to a blob outside of the directory."""
    blobs = directory.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), directory))


def _template(directory: Path) -> str:
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    return template


def inline_template(directory: Path) -> None:
    template = _template(directory)
    edit(directory, "tokenizer_config.json", lambda settings: settings.update(chat_template=template))


def named_templates(directory: Path) -> None:
    named = [{"name": "default", "template": _template(directory)}, {"name": "tool_use", "template": "TOOLS"}]
    edit(directory, "tokenizer_config.json", lambda settings: settings.update(chat_template=named))


def wrapped_template(directory: Path) -> None:
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": _template(directory)}))


def processor_of_transformers_5(directory: Path) -> None:
    """One file for the processor and its image processor."""
    images = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    path = directory / "processor_config.json"
    whole = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**whole, "image_processor": images}))


def no_processor_config(directory: Path) -> None:
    (directory / "processor_config.json").unlink()


CASES: dict[str, tuple[str, bool, Happened]] = {
    "plain": ("llama", False, nothing),
    "sharded": ("llama", False, shard),
    "tied": ("llama", True, nothing),
    "tied-own-head": ("llama", True, own_head),
    "tied-own-head-sharded": ("llama", True, own_head_in_shards),
    "tied-head-not-in-the-index": ("llama", True, index_without_the_head),
    "tied-same-head": ("llama", True, same_head),
    "tied-head-alone": ("llama", True, head_alone),
    "tied-own-head-vision": ("qwen2_vl", True, own_head),
    "single-beside-stale-index": ("llama", False, stale_index),
    "single-beside-stale-shards": ("llama", False, stale_shards),
    "left-over-adapter": ("llama", False, adapters),
    "tokens-added": ("llama", False, tokens_added),
    "body-without-prefix": ("llama", True, body_without_prefix),
    "old-rotary-tables": ("llama", False, old_rotary_tables),
    "stored-in-float32": ("llama", False, stored_in_float32),
    "torch-dtype": ("llama", False, torch_dtype),
    "no-dtype": ("llama", False, no_dtype),
    "hub-cache": ("qwen2_vl", False, hub_cache),
    "inline-template": ("llama", False, inline_template),
    "named-templates": ("llama", False, named_templates),
    "wrapped-template": ("qwen2_vl", False, wrapped_template),
    "names-of-transformers-4": ("qwen2_vl", False, nothing),
    "names-of-transformers-5": (
        "qwen2_vl",
        False,
        renamed(("model.", "model.language_model."), ("visual.", "model.visual.")),
    ),
    "processor-of-transformers-5": ("llava", False, processor_of_transformers_5),
    "llava-without-processor-config": ("llava", False, no_processor_config),
}
