"""The input groups of a model, block by block, and what stays as it is: found among the names and shapes on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from planning.errors import Unreadable
from planning.families import STACKS, Family, family_of, text_config
from planning.headers import FLOATS, ITEM_BYTES, ModelHeaders, Tensor

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BLOCK_KEY = re.compile(rf"(?:{'|'.join(re.escape(stack) for stack in STACKS)})layers\.(\d+)\.(.+)")
HEADS = ("lm_head.weight", "language_model.lm_head.weight", "language_model.output.weight")
RECOMPUTED = ("rotary_emb.inv_freq", "masked_bias", "attn.bias_mask")
"""Ends of names that old files hold and no model reads any more."""

INTERNLM2 = {
    "attention.wo.": "self_attn.o_proj.",
    "feed_forward.w1.": "mlp.gate_proj.",
    "feed_forward.w3.": "mlp.up_proj.",
    "feed_forward.w2.": "mlp.down_proj.",
}
INTERNLM2_QKV = re.compile(r"attention\.wqkv\.(weight|bias)")


@dataclass(frozen=True)
class Group:
    """One input group: ``width`` input channels; ``outs``: output width of each layer."""

    name: str
    label: str
    layers: tuple[str, ...]
    width: int
    outs: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.outs)

    @property
    def weights(self) -> int:
        return self.width * self.rows


@dataclass(frozen=True)
class Block:
    """One decoder block. ``kept``: bytes of its tensors that are not quantized, in the model's dtype; ``before``: bytes
    of all of them on disk."""

    number: int
    groups: tuple[Group, ...]
    kept: int
    before: int


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
    ``vocabulary`` and ``hidden`` are the output head's."""

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
    skipped: tuple[Skipped, ...] = field(default=())

    @property
    def groups(self) -> list[Group]:
        return [group for block in self.blocks for group in block.groups]

    @property
    def weights(self) -> int:
        return sum(group.weights for group in self.groups)

    @property
    def item(self) -> int:
        """Bytes of one value of the model."""
        return ITEM_BYTES[self.dtype]


def shapes_of(headers: ModelHeaders) -> Shapes:
    """Raises Unreadable: not supported, quantized already, or tensors that are not what its family has."""
    config = headers.config
    family = family_of(config)
    _refuse_quantized(config)
    dtype = _dtype(headers)
    inside: dict[int, dict[str, Tensor]] = {}
    outside: dict[str, Tensor] = {}
    for key, tensor in headers.tensors.items():
        if key.endswith(RECOMPUTED):
            continue
        found = BLOCK_KEY.fullmatch(key)
        if found is None:
            outside[key] = tensor
        else:
            inside.setdefault(int(found[1]), {}).update(_native(found[2], tensor, config))
    count = _blocks(config, inside)
    blocks = tuple(_block(family, number, inside[number], dtype) for number in range(count))
    head = next((name for name in HEADS if name in outside), None)
    if head is not None and _is_tied(config, family):
        del outside[head]
        head = None
    embeddings = next(
        (t for key, t in outside.items() if key.endswith(("embed_tokens.weight", "tok_embeddings.weight"))), None
    )
    if embeddings is None or len(embeddings.shape) != 2:
        raise Unreadable("invalid_model", "no tensor of the model is its token embeddings")
    sizes = {key: _bytes(tensor, dtype) for key, tensor in outside.items()}
    vision = {key: tensor for key, tensor in outside.items() if family.vision and _is_vision(key)}
    return Shapes(
        family=family,
        model_type=str(config["model_type"]),
        dtype=dtype,
        blocks=blocks,
        others=sum(sizes.values()),
        before_blocks=sum(sizes[key] for key in vision) + _bytes(embeddings, dtype),
        largest_other=max(sizes.values()),
        head=_bytes(embeddings, dtype) if head is None else sizes[head],
        bytes_before=headers.bytes,
        vocabulary=embeddings.shape[0],
        hidden=embeddings.shape[1],
        heads=_natural(text_config(config), "num_attention_heads") or 1,
        vision_parameters=sum(tensor.values for tensor in vision.values()),
        skipped=(*([] if head else [TIED]), *_skipped(outside, family)),
    )


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
        named = (part.get("dtype") or part.get("torch_dtype")) if isinstance(part, dict) else None
        if named is not None:
            dtype = DTYPES.get(str(named).removeprefix("torch."))
            if dtype is None:
                raise Unreadable(
                    "invalid_model", f"the model's dtype is {named}; float32, float16 and bfloat16 are supported"
                )
            return dtype
    stored = next((tensor.dtype for tensor in headers.tensors.values() if tensor.dtype in FLOATS), None)
    if stored is None:
        raise Unreadable("invalid_model", "no tensor of the model is float32, float16 or bfloat16")
    return stored


def _bytes(tensor: Tensor, dtype: str) -> int:
    """In memory: floating tensors take the model's dtype, others stay."""
    floating = tensor.dtype.startswith(("F", "BF"))
    return tensor.values * ITEM_BYTES[dtype] if floating else tensor.bytes


def _blocks(config: Mapping[str, Any], inside: Mapping[int, Any]) -> int:
    if not inside or sorted(inside) != list(range(len(inside))):
        missing = next((n for n in range(len(inside) + 1) if n not in inside), 0)
        raise Unreadable("invalid_model", f"no tensor of the model belongs to decoder block {missing}")
    wanted = _natural(text_config(config), "num_hidden_layers")
    if wanted is not None and wanted != len(inside):
        raise Unreadable(
            "invalid_model", f"config.json says {wanted} decoder blocks, the files hold tensors of {len(inside)}"
        )
    return len(inside)


def _natural(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if type(value) is int and value > 0 else None


def _native(name: str, tensor: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensor under the names of the model in memory: InternLM2 calls its layers otherwise, and fuses three."""
    fused = INTERNLM2_QKV.fullmatch(name)
    if fused is None:
        for old, new in INTERNLM2.items():
            if name.startswith(old):
                return {name.replace(old, new, 1): tensor}
        return {name: tensor}
    text = text_config(config)
    queries, heads = _natural(text, "num_attention_heads"), _natural(text, "num_key_value_heads")
    rows = tensor.shape[0] if tensor.shape else 0
    if queries is None or heads is None or rows % (queries + 2 * heads):
        raise Unreadable("invalid_model", f"{name} of shape {list(tensor.shape)} does not divide into heads")
    width = rows // (queries + 2 * heads)
    parts = {"q_proj": queries * width, "k_proj": heads * width, "v_proj": heads * width}
    return {
        f"self_attn.{layer}.{fused[1]}": Tensor(tensor.dtype, (out, *tensor.shape[1:])) for layer, out in parts.items()
    }


def _block(family: Family, number: int, tensors: Mapping[str, Tensor], dtype: str) -> Block:
    groups, quantized = [], set()
    for within, label, layers in family.groups:
        path = f"{within}." if within else ""
        weights = []
        for layer in layers:
            name = f"{path}{layer}.weight"
            tensor = tensors.get(name)
            if tensor is None or len(tensor.shape) != 2:
                raise Unreadable(
                    "invalid_model", f"decoder block {number} has no layer {path}{layer}, which its family has"
                )
            weights.append(tensor)
            quantized.add(name)
        widths = {tensor.shape[1] for tensor in weights}
        if len(widths) != 1 or 0 in {side for tensor in weights for side in tensor.shape}:
            raise Unreadable(
                "invalid_model", f"decoder block {number}: {', '.join(layers)} do not have the same input width"
            )
        outs = tuple(tensor.shape[0] for tensor in weights)
        groups.append(Group(f"{family.stack}.layers.{number}.{path}{label}", label, layers, widths.pop(), outs))
    kept = sum(_bytes(tensor, dtype) for name, tensor in tensors.items() if name not in quantized)
    return Block(number, tuple(groups), kept, sum(tensor.bytes for tensor in tensors.values()))


def _is_tied(config: Mapping[str, Any], family: Family) -> bool:
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, dict) and isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return family.tied


def _is_vision(key: str) -> bool:
    """Tower, merger, projector: whatever of a multimodal model is neither its language model nor its head."""
    return not key.startswith(("model.language_model.", "language_model.", "lm_head.")) and not re.match(
        r"model\.(embed_tokens|norm|layers)\.", key
    )


def _skipped(outside: Mapping[str, Tensor], family: Family) -> Iterator[Skipped]:
    """One line per kind: names are alike but for their numbers."""
    kinds: dict[tuple[str, str], list[Tensor]] = {}
    for key, tensor in outside.items():
        if key.endswith(".weight") and len(tensor.shape) == 2:
            name = re.sub(r"\.\d+(?=\.)", ".*", key.removesuffix(".weight"))
            kinds.setdefault((name, _reason(key, family)), []).append(tensor)
    for (name, reason), tensors in kinds.items():
        yield Skipped(name, len(tensors), sum(tensor.values for tensor in tensors), reason)


def _reason(key: str, family: Family) -> str:
    if key in HEADS:
        return "output head: kept in full precision"
    if "embed" in key.rpartition(".weight")[0].rpartition(".")[2]:
        return "embeddings: a table that is looked up, not multiplied"
    if family.vision and _is_vision(key):
        return "vision tower: quantizing it costs the most accuracy"
    return "not one of the family's input groups"
