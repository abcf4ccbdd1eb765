"""The walked blocks of a model and their input groups, found among the names and shapes on disk."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from quant_experts.planning.errors import Unreadable
from quant_experts.planning.families import STACKS, Family, kinds_of, text_config
from quant_experts.planning.found_groups import BLOCK, decoder_prefix, groups_in
from quant_experts.planning.headers import ITEM_BYTES, Tensor
from quant_experts.planning.known_types import RENAMED, WIDE
from quant_experts.planning.layer_names import INTERNLM2, in_memory_names
from quant_experts.planning.layer_rules import is_of_mixture
from quant_experts.planning.mixtures import experts_apart, share_of_tokens
from quant_experts.planning.stacks import Stack, native

LANGUAGE = ("model.language_model.", "language_model.", "lm_head.")
DECODER_KEY = re.compile(rf"(?:{'|'.join(re.escape(stack) for stack in STACKS)})layers\.(\d+)\.(.+)")

EXPERTS = re.compile(r"(^|\.)experts\.")

Reads = Literal["tokens", "patches", "images", "audio"]
"""What a row brings to a group: its tokens, the patches of its images, the image tokens that they become, or the
positions of an encoder of audio."""


@dataclass(frozen=True)
class Group:
    """One input group: ``width`` input channels; ``outs``: output width of each layer; ``share``: of what it reads that
    reaches it, less than all of it in an expert of a mixture."""

    name: str
    label: str
    layers: tuple[str, ...]
    width: int
    outs: tuple[int, ...]
    reads: Reads = "tokens"
    share: float = 1.0

    @property
    def of_mixture(self) -> bool:
        """Whether it belongs to an expert that sees only the tokens that a router sends to it."""
        return is_of_mixture(self.name.removesuffix(f".{self.label}"), self.layers[0])

    @property
    def rows(self) -> int:
        return sum(self.outs)

    @property
    def weights(self) -> int:
        return self.width * self.rows


@dataclass(frozen=True)
class Block:
    """One walked block. ``number``: among all of them; ``index``: within its stack, None behind its blocks.
    ``other_bytes``: bytes of its tensors that are not quantized, in the model's dtype; ``before``: bytes of all of them
    on disk."""

    number: int
    groups: tuple[Group, ...]
    other_bytes: int
    before: int
    stack: str
    index: int | None

    @property
    def of_mixture(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.of_mixture)


@dataclass(frozen=True)
class ModelBlocks:
    """``outside``: tensors that belong to no walked block, under their keys on disk. ``language``: what stands before
    those of them that are the language model's."""

    blocks: tuple[Block, ...]
    outside: Mapping[str, Tensor]
    language: tuple[str, ...] = LANGUAGE


def walked_blocks(
    family: Family, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, vision: str, dtype: str
) -> ModelBlocks:
    """Raises Unreadable naming a block or a layer that the family has and the files have not."""
    blocks: list[Block] = []
    if family.is_found:
        return _found_blocks(family, tensors, config, dtype)
    for stack in family.stacks(vision):
        inside, tensors = _inside(stack, tensors, config, is_decoder=stack == family.decoder)
        what = "decoder" if stack == family.decoder else stack.name
        for index in range(_count(stack, what, config, inside)):
            reads: Reads = {"image": "patches", "audio": "audio", None: "tokens"}[stack.media]  # type: ignore[assignment]
            groups = [(f"{parent}." if parent else "", label, layers) for parent, label, layers in stack.groups]
            path, where = f"{stack.blocks}.{index}.", f"{what} block {index}"
            blocks.append(_block(len(blocks), stack, index, path, where, groups, inside[index], dtype, reads))
        if stack.behind:
            behind, tensors = _behind(stack, tensors)
            groups = [
                (f"{each}.", label, layers) for path, label, layers in stack.behind for each in _each(path, behind)
            ]
            where = f"what lies behind the {what} blocks"
            blocks.append(_block(len(blocks), stack, None, "", where, groups, behind, dtype, "images"))
    return ModelBlocks(tuple(blocks), tensors)


def _found_blocks(family: Family, tensors: Mapping[str, Tensor], config: Mapping[str, Any], dtype: str) -> ModelBlocks:
    prefix = decoder_prefix(tensors)
    if prefix is None:
        raise Unreadable("invalid_model", "no tensor of the model belongs to a block of its decoder")
    inside: Inside = {}
    outside: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = BLOCK.fullmatch(key)
        if match and match[1] == prefix:
            inside.setdefault(int(match[2]), {})[match[3]] = tensor
        else:
            outside[key] = tensor
    kind, text, path = str(config["model_type"]), text_config(config), family.stack
    rules = tuple(dict.fromkeys(rule for each in kinds_of(config) for rule in RENAMED.get(each, ())))
    stack = Stack("language model", path, ())
    blocks = []
    for index in range(_count(stack, "decoder", config, inside)):
        apart = experts_apart(in_memory_names(inside[index], rules, text), kind)
        _refuse_unknown_stacks(f"{prefix}.{index}.", apart)
        groups = [(f"{parent}." if parent else "", label, layers) for parent, label, layers in groups_in(apart, kind)]
        where = f"decoder block {index}"
        block = _block(index, stack, index, f"{path}.{index}.", where, groups, apart, dtype, "tokens")
        wide = wide_bytes(apart, config, dtype)
        blocks.append(replace(_with_shares(block, text), other_bytes=block.other_bytes + wide))
    around = f"{prefix.rpartition('.')[0]}."
    return ModelBlocks(tuple(blocks), outside, LANGUAGE if around in ("model.", ".") else (*LANGUAGE, around))


def _refuse_unknown_stacks(path: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if len(tensor.shape) == 3 and EXPERTS.search(name):
            raise Unreadable(
                "unsupported_model",
                f"{path}{name} belongs to the experts of a mixture, in a layout that is not supported",
            )


def _with_shares(block: Block, text: Mapping[str, Any]) -> Block:
    experts = Counter(group.name.rpartition(".")[0] + group.layers[0].partition(".")[0] for group in block.of_mixture)
    share = share_of_tokens(text, max(experts.values(), default=1))
    groups = (replace(group, share=share) if group.of_mixture else group for group in block.groups)
    return replace(block, groups=tuple(groups))


def wide_bytes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], dtype: str) -> int:
    """What those of the tensors that stay float32 in a model of 16 bits take beyond what they take in ``dtype``."""
    ends = tuple(end for kind in kinds_of(config) for end in WIDE.get(kind, ()))
    wide = (tensor for name, tensor in tensors.items() if ends and f".{numbered(name)}".endswith(ends))
    return sum(tensor.values for tensor in wide) * (ITEM_BYTES["F32"] - ITEM_BYTES[dtype])


def numbered(name: str) -> str:
    """With ``*`` for a number at its end, as the parameters of a list have."""
    return re.sub(r"(?<=\.)\d+$", "*", name)


def in_memory(tensor: Tensor, dtype: str) -> int:
    """Bytes: floating tensors take the model's dtype, others stay."""
    floating = tensor.dtype.startswith(("F", "BF"))
    return tensor.values * ITEM_BYTES[dtype] if floating else tensor.bytes


def natural(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if type(value) is int and value > 0 else None


Inside = dict[int, dict[str, Tensor]]
"""Number of the block → its tensors, under their names within it."""


def _inside(
    stack: Stack, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, is_decoder: bool
) -> tuple[Inside, dict[str, Tensor]]:
    """The tensors of the stack's blocks, and those that are left."""
    inside: Inside = {}
    rest: dict[str, Tensor] = {}
    pattern = DECODER_KEY if is_decoder else re.compile(rf"{re.escape(stack.blocks)}\.(\d+)\.(.+)")
    for key, tensor in tensors.items():
        if is_decoder:
            match = pattern.fullmatch(key)
            if match:
                inside.setdefault(int(match[1]), {})[match[2]] = tensor
        else:
            for name, part in native(key, tensor):
                match = pattern.fullmatch(name)
                if match:
                    inside.setdefault(int(match[1]), {})[match[2]] = part
        if not match:
            rest[key] = tensor
    if is_decoder:
        text = text_config(config)
        inside = {number: in_memory_names(block, INTERNLM2, text) for number, block in inside.items()}
    return inside, rest


def _behind(stack: Stack, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the modules behind the stack's blocks, under full names in memory, and those that are left."""
    parents = tuple(f"{parent.removesuffix('.*')}." for parent, _, _ in stack.behind)
    behind: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        ((name, _),) = list(native(key, tensor))[:1]
        if name.startswith(parents):
            behind[name] = tensor
        else:
            rest[key] = tensor
    return behind, rest


def _each(path: str, names: Mapping[str, Tensor]) -> list[str]:
    """``path``, or with ``*`` at its end one path for each entry of the list."""
    if not path.endswith(".*"):
        return [path]
    entries = re.compile(re.escape(path.removesuffix("*")) + r"(\d+)\.")
    return [
        f"{path.removesuffix('*')}{number}" for number in sorted({int(f[1]) for f in map(entries.match, names) if f})
    ]


def _count(stack: Stack, what: str, config: Mapping[str, Any], inside: Inside) -> int:
    if not inside or sorted(inside) != list(range(len(inside))):
        missing = next((n for n in range(len(inside) + 1) if n not in inside), 0)
        raise Unreadable("invalid_model", f"no tensor of the model belongs to {what} block {missing}")
    part = text_config(config)
    for name in stack.depth[:-1]:
        inner = part.get(name)
        part = inner if isinstance(inner, dict) else {}
    count = natural(part, stack.depth[-1])
    if count is not None and count != len(inside):
        raise Unreadable(
            "invalid_model", f"config.json says {count} {what} blocks, the files hold tensors of {len(inside)}"
        )
    return len(inside)


def _block(
    number: int,
    stack: Stack,
    index: int | None,
    path: str,
    where: str,
    group_rules: Sequence[tuple[str, str, tuple[str, ...]]],
    tensors: Mapping[str, Tensor],
    dtype: str,
    reads: Reads,
) -> Block:
    """``path``: of the block, in memory; ``where``: the same, for people."""
    groups, quantized = [], set()
    for within, label, layers in group_rules:
        weights = []
        for layer in layers:
            name = f"{within}{layer}.weight"
            tensor = tensors.get(name)
            if tensor is None or len(tensor.shape) != 2:
                raise Unreadable("invalid_model", f"{where} has no layer {within}{layer}, which its family has")
            weights.append(tensor)
            quantized.add(name)
        widths = {tensor.shape[1] for tensor in weights}
        if len(widths) != 1 or 0 in {side for tensor in weights for side in tensor.shape}:
            raise Unreadable("invalid_model", f"{where}: {', '.join(layers)} do not have the same input width")
        outs = tuple(tensor.shape[0] for tensor in weights)
        read: Reads = "audio" if f"{within}{label}" in stack.memory else reads
        groups.append(Group(f"{path}{within}{label}", label, layers, widths.pop(), outs, read))
    other_bytes = sum(in_memory(tensor, dtype) for name, tensor in tensors.items() if name not in quantized)
    before = sum(tensor.bytes for tensor in tensors.values())
    return Block(number, tuple(groups), other_bytes, before, stack.name, index)
