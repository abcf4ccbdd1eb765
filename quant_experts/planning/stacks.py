"""The stacks of blocks inside a model, as far as a plan has to know them, and what their tensors are called in memory.

``quant_experts.model.families.towers`` takes the towers from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from quant_experts.planning.headers import Tensor

Groups = tuple[tuple[str, str, tuple[str, ...]], ...]
"""(parent within the block, label, layers), in the order in which a block runs them. An empty parent is the block."""

Media = Literal["image", "audio"]


@dataclass(frozen=True)
class Stack:
    """``blocks``: path of the list of blocks, in memory. ``behind``: groups behind the blocks, with parents from the
    model's root, walked as one block more. ``media``: what every token of the stack is a piece of. ``memory``:
    ``parent.label`` of the groups that read what the stack before has put out. ``depth``: the entry of config.json that
    counts its blocks, in the part that describes it."""

    name: str
    blocks: str
    groups: Groups
    behind: Groups = ()
    media: Media | None = None
    memory: tuple[str, ...] = ()
    depth: tuple[str, ...] = ("num_hidden_layers",)


AnyStack = TypeVar("AnyStack")


def in_order(
    tower: AnyStack | None, encoder: AnyStack | None, decoder: AnyStack, *, vision: str
) -> tuple[AnyStack, ...]:
    """The stacks that are walked, in the order in which the model runs them. ``vision``: keep or quantize."""
    before = (tower if vision == "quantize" else None, encoder)
    return (*(stack for stack in before if stack is not None), decoder)


QWEN_ATTENTION: Groups = (("attn", "qkv", ("qkv",)), ("attn", "proj", ("proj",)))


def _qwen(feed_forward: Groups, behind: Groups) -> Stack:
    groups = (*QWEN_ATTENTION, *feed_forward)
    return Stack("vision", "model.visual.blocks", groups, behind, media="image", depth=("vision_config", "depth"))


QWEN_MERGER: Groups = (("model.visual.merger", "fc1", ("mlp.0",)), ("model.visual.merger", "fc2", ("mlp.2",)))
QWEN2_VL = _qwen((("mlp", "fc1", ("fc1",)), ("mlp", "fc2", ("fc2",))), QWEN_MERGER)
QWEN2_5_VL = _qwen(
    (("mlp", "gate_up", ("gate_proj", "up_proj")), ("mlp", "down", ("down_proj",))),
    QWEN_MERGER,
)
QWEN3_VL = _qwen(
    (("mlp", "fc1", ("linear_fc1",)), ("mlp", "fc2", ("linear_fc2",))),
    tuple(
        (f"model.visual.{merger}", label, layers)
        for merger in ("merger", "deepstack_merger_list.*")
        for label, layers in (("fc1", ("linear_fc1",)), ("fc2", ("linear_fc2",)))
    ),
)
INTERNVL = Stack(
    "vision",
    "model.vision_tower.encoder.layer",
    (
        ("attention", "qkv", ("q_proj", "k_proj", "v_proj")),
        ("attention", "out", ("projection_layer",)),
        ("mlp", "fc1", ("fc1",)),
        ("mlp", "fc2", ("fc2",)),
    ),
    (
        ("model.multi_modal_projector", "fc1", ("linear_1",)),
        ("model.multi_modal_projector", "fc2", ("linear_2",)),
    ),
    media="image",
    depth=("vision_config", "num_hidden_layers"),
)

WHISPER_BLOCK: Groups = (
    ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", "out", ("out_proj",)),
)
WHISPER_MEMORY: Groups = (
    ("encoder_attn", "q", ("q_proj",)),
    ("encoder_attn", "kv", ("k_proj", "v_proj")),
    ("encoder_attn", "out", ("out_proj",)),
)
FEED_FORWARD: Groups = (("", "fc1", ("fc1",)), ("", "fc2", ("fc2",)))
WHISPER_DECODER: Groups = (*WHISPER_BLOCK, *WHISPER_MEMORY, *FEED_FORWARD)
WHISPER_ENCODER = Stack(
    "encoder", "model.encoder.layers", (*WHISPER_BLOCK, *FEED_FORWARD), media="audio", depth=("encoder_layers",)
)

NATIVE = (
    (r"(?:model\.)?visual\.", "model.visual."),
    (r"(?:model\.)?(vision_tower|multi_modal_projector)\.", r"model.\1."),
    (r"(?:model\.)?encoder\.layers\.", "model.encoder.layers."),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.",
        r"model.vision_tower.encoder.layer.\1.attention.projection_layer.",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.", r"model.vision_tower.encoder.layer.\1."),
    (r"mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"mlp1\.3\.", "model.multi_modal_projector.linear_2."),
)
"""(beginning of a key on disk, of its name in memory), of towers and encoders that can be walked."""

INTERNVL_QKV = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(\w+)")


def native(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of a tower or an encoder under the name, or in the three parts, that the model in memory has."""
    fused = INTERNVL_QKV.fullmatch(key)
    if fused and tensor.shape and tensor.shape[0] % 3 == 0:
        part = Tensor(tensor.dtype, (tensor.shape[0] // 3, *tensor.shape[1:]))
        for layer in ("q_proj", "k_proj", "v_proj"):
            yield f"model.vision_tower.encoder.layer.{fused[1]}.attention.{layer}.{fused[2]}", part
        return
    for pattern, name in NATIVE:
        match = re.match(pattern, key)
        if match:
            yield match.expand(name) + key[match.end() :], tensor
            return
    yield key, tensor
