"""The input groups of a model, block by block, and what stays as it is: found among the names and shapes on disk."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quant_experts.planning.blocks import Block, Group, Reads, in_memory, natural, walked_blocks, wide_bytes
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.families import Family, family_of, text_config
from quant_experts.planning.headers import EMBEDDINGS, FLOATS, HEADS, ITEM_BYTES, MORE_EMBEDDINGS, ModelHeaders, Tensor
from quant_experts.planning.rows import Rows

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
PATCHES = ("patch_embed.proj.weight", "patch_embeddings.projection.weight", "patch_embedding.weight", "conv1.weight")
PATCHES_PER_TOKEN = 4
"""Two by two patches become one image token, in every family whose tower can be quantized."""
DEEP_STACK = (8, 16, 24)
"""Where Qwen3-VL's config.json does not say."""
MASKS = {"gemma3": 2}
"""By model type."""
RECOMPUTED = ("rotary_emb.inv_freq", "masked_bias", "attn.bias_mask")
"""Ends of names that old files hold and no model reads any more."""


@dataclass(frozen=True)
class Skipped:
    """Linear layers that stay as they are; ``*`` stands for every number. ``weights``: of all of them together."""

    name: str
    layers: int
    weights: int
    reason: str


TIED = Skipped("lm_head", 1, 0, "output head: it is the embeddings, which stay")


@dataclass(frozen=True)
class Shapes:
    """``dtype``: of the model in memory, as safetensors call it. ``others``: bytes outside of the blocks in that dtype;
    ``before_blocks``: of those, what is in memory while rows are calibrated; ``largest_other``: the largest single one.
    ``vocabulary`` and ``hidden`` are the output head's; ``vision_parameters`` those that stay as they are.
    ``audio_positions``: of an encoder, for each row. ``patch_values``: of the inputs that become one patch.
    """

    family: Family
    model_type: str
    dtype: str
    blocks: tuple[Block, ...]
    others: int
    before_blocks: int
    largest_other: int
    head: int
    bytes_before: int
    vocabulary: int
    hidden: int
    heads: int
    vision_parameters: int
    audio_positions: int = 0
    patch_values: int = 0
    deep_blocks: tuple[int, ...] = ()
    """Of the vision tower, whose output goes to the language model as well."""
    masks: int = 0
    """Attention masks of tokens × tokens that the language model is called with, each of one byte a value."""
    skipped: tuple[Skipped, ...] = field(default=())

    @property
    def groups(self) -> list[Group]:
        return [group for block in self.blocks for group in block.groups]

    @property
    def kinds(self) -> list[Block]:
        """The first block of every stack, and what lies behind the blocks of one."""
        return [block for block in self.blocks if block.index in (0, None)]

    @property
    def has_several_stacks(self) -> bool:
        return self.blocks[0].stack != self.blocks[-1].stack

    def tokens(self, reads: Reads, rows: Rows) -> float:
        """Of a row, as a group that reads them sees them."""
        of_images = {"patches": PATCHES_PER_TOKEN * rows.image_tokens, "images": rows.image_tokens}
        return {"tokens": rows.tokens, "audio": float(self.audio_positions), **of_images}[reads]

    @property
    def weights(self) -> int:
        return sum(group.weights for group in self.groups)

    @property
    def read_again(self) -> int:
        """Blocks of the vision tower, other than its last, whose hidden states a later one asks for."""
        last = max(
            (block.index for block in self.blocks if block.stack == "vision" and block.index is not None), default=0
        )
        return sum(number != last for number in self.deep_blocks) if self.has_several_stacks else 0

    @property
    def item(self) -> int:
        """Bytes of one value of the model."""
        return ITEM_BYTES[self.dtype]


def shapes_of(headers: ModelHeaders, *, vision: str = "keep") -> Shapes:
    """``vision``: ``quantize`` walks the vision tower too, where it can be.

    Raises Unreadable: not supported, quantized already, or tensors that are not what its family has.
    """
    config = headers.config
    family = family_of(config)
    _refuse_quantized(config)
    dtype = _dtype(headers)
    tensors = {key: tensor for key, tensor in headers.tensors.items() if not key.endswith(RECOMPUTED)}
    walk = walked_blocks(family, tensors, config, vision=vision if family.tower else "keep", dtype=dtype)
    outside = dict(walk.outside)
    head = next((name for name in HEADS if name in outside), None)
    embeddings = next((tensor for key, tensor in outside.items() if key.endswith(EMBEDDINGS)), None)
    if head is not None and _is_tied(config, family) and not headers.own_head:
        if embeddings is None:  # stored under the name of the head alone
            embeddings = outside[head]
        else:
            del outside[head]
        head = None
    if embeddings is None or len(embeddings.shape) != 2:
        raise Unreadable("invalid_model", "the model has no tensor of token embeddings")
    sizes = {key: in_memory(tensor, dtype) for key, tensor in outside.items()}
    vision_tensors = {
        key: tensor for key, tensor in outside.items() if family.vision and _is_vision(key, walk.language)
    }
    patches = next((t for key, t in outside.items() if key.endswith(PATCHES)), None)
    return Shapes(
        family=family,
        model_type=str(config["model_type"]),
        dtype=dtype,
        blocks=walk.blocks,
        others=sum(sizes.values()) + (wide_bytes(outside, config, dtype) if family.is_found else 0),
        before_blocks=sum(sizes[key] for key in vision_tensors) + in_memory(embeddings, dtype),
        largest_other=max(sizes.values()),
        head=in_memory(embeddings, dtype) if head is None else sizes[head],
        bytes_before=headers.bytes,
        vocabulary=embeddings.shape[0] + sum(t.shape[0] for key, t in outside.items() if key.endswith(MORE_EMBEDDINGS)),
        hidden=embeddings.shape[1],
        heads=natural(text_config(config), "num_attention_heads") or 1,
        vision_parameters=sum(tensor.values for tensor in vision_tensors.values()),
        audio_positions=(natural(config, "max_source_positions") or 1500) if family.encoder else 0,
        patch_values=math.prod(patches.shape[1:]) if patches is not None else 0,
        deep_blocks=_deep_blocks(config),
        masks=MASKS.get(str(config["model_type"]), 0),
        skipped=(*([] if head else [replace(TIED, name=family.head)]), *_skipped(outside, family, walk.language)),
    )


def _deep_blocks(config: Mapping[str, Any]) -> tuple[int, ...]:
    if config.get("model_type") != "qwen3_vl":
        return ()
    vision = config.get("vision_config")
    indexes = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
    return tuple(each for each in indexes if type(each) is int) if isinstance(indexes, list) else DEEP_STACK


def _refuse_quantized(config: Mapping[str, Any]) -> None:
    quantized = config.get("quantization_config")
    if quantized:
        method = (
            quantized.get("quant_method", "an unknown method") if isinstance(quantized, dict) else "an unknown method"
        )
        raise Unreadable(
            "invalid_model", f"the model is already quantized ({method}); give the model that it was made from"
        )


def _dtype(headers: ModelHeaders) -> str:
    """What transformers chooses: the configuration's dtype, else that of the first floating tensor."""
    config = headers.config
    for part in (config, config.get("text_config"), config.get("llm_config")):
        name = (part.get("dtype") or part.get("torch_dtype")) if isinstance(part, dict) else None
        if name is not None:
            dtype = DTYPES.get(str(name).removeprefix("torch."))
            if dtype is None:
                raise Unreadable(
                    "invalid_model", f"the model's dtype is {name}; float32, float16 and bfloat16 are supported"
                )
            return dtype
    tensor_dtype = next((tensor.dtype for tensor in headers.tensors.values() if tensor.dtype in FLOATS), None)
    if tensor_dtype is None:
        raise Unreadable("invalid_model", "no tensor of the model is float32, float16 or bfloat16")
    return tensor_dtype


def _is_tied(config: Mapping[str, Any], family: Family) -> bool:
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return family.tied


def _is_vision(key: str, language: tuple[str, ...]) -> bool:
    """Tower, merger, projector: whatever of a multimodal model is neither its language model nor its head."""
    return (
        key not in HEADS and not key.startswith(language) and not re.match(r"model\.(embed_tokens|norm|layers)\.", key)
    )


def _skipped(outside: Mapping[str, Tensor], family: Family, language: tuple[str, ...]) -> Iterator[Skipped]:
    """One line per kind: names are alike but for their numbers."""
    kinds: dict[tuple[str, str], list[Tensor]] = {}
    for key, tensor in outside.items():
        if key.endswith(".weight") and len(tensor.shape) == 2:
            name = re.sub(r"\.\d+(?=\.)", ".*", key.removesuffix(".weight"))
            kinds.setdefault((name, _reason(key, family, language)), []).append(tensor)
    for (name, reason), tensors in kinds.items():
        yield Skipped(name, len(tensors), sum(tensor.values for tensor in tensors), reason)


def _reason(key: str, family: Family, language: tuple[str, ...]) -> str:
    if key in HEADS:
        return "output head: kept in full precision"
    if "embed" in key.rpartition(".weight")[0].rpartition(".")[2]:
        return "embeddings: a table that is looked up, not multiplied"
    if family.vision and _is_vision(key, language):
        return "vision tower: quantizing it costs the most accuracy"
    return "not one of the family's input groups"
