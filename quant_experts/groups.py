"""Which models the walk knows, and the input groups inside their decoder blocks.

An input group is the set of sibling linear layers that read the same activation (method.md, section 2). The table below
is the whole knowledge about a family: where its language model sits and which layers share an input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from quant_experts.errors import InvalidModel, UnsupportedModel

DECODER_GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", "o", ("o_proj",)),
    ("mlp", "gate_up", ("gate_proj", "up_proj")),
    ("mlp", "down", ("down_proj",)),
)
"""(parent within the block, label, layers), in the order in which a block runs them."""


@dataclass(frozen=True)
class Family:
    """One ``model_type``. ``language_model``: module path of the decoder stack; its blocks are ``<path>.layers``."""

    model_class: str
    language_model: str
    vision: str | None = None
    groups: tuple[tuple[str, str, tuple[str, ...]], ...] = DECODER_GROUPS


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", "model.language_model", "model.visual"),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", "model.language_model", "model.visual"),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", "model.language_model", "model.visual"),
    "llama": Family("LlamaForCausalLM", "model"),
    "qwen2": Family("Qwen2ForCausalLM", "model"),
    "qwen3": Family("Qwen3ForCausalLM", "model"),
    "mistral": Family("MistralForCausalLM", "model"),
}


@dataclass(frozen=True)
class GroupPlan:
    """One input group of a model: ``width`` input channels; ``outs``: output width of each layer."""

    name: str
    parent: str
    label: str
    layers: tuple[str, ...]
    block: int
    width: int
    outs: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Number of weights that quantizing this group quantizes."""
        return self.width * sum(self.outs)


def family_of(config: dict[str, Any]) -> Family:
    """The family of a ``config.json``. Raises UnsupportedModel with the list of supported ones."""
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    supported = ", ".join(f"{name} ({known.model_class})" for name, known in FAMILIES.items())
    if family is None:
        raise UnsupportedModel(f"config.json: model_type {model_type!r} is not supported; supported: {supported}")
    architectures = config.get("architectures") or [family.model_class]
    if family.model_class not in architectures:
        raise UnsupportedModel(
            f"config.json: architecture {', '.join(map(str, architectures))} is not supported; supported: {supported}"
        )
    return family


def block_prefix(family: Family, block: int) -> str:
    return f"{family.language_model}.layers.{block}"


def plan_groups(model: nn.Module, family: Family) -> list[list[GroupPlan]]:
    """The input groups of every decoder block, in the order in which they run. ``model`` may be on the meta device.

    Raises InvalidModel when a layer of the table is missing: the configuration then is not what the family promises.
    """
    layers = model.get_submodule(family.language_model).get_submodule("layers")
    return [list(_block_groups(model, family, block)) for block in range(len(list(layers.children())))]


def _block_groups(model: nn.Module, family: Family, block: int) -> Iterator[GroupPlan]:
    for within, label, layers in family.groups:
        parent = f"{block_prefix(family, block)}.{within}"
        modules = [_linear(model, f"{parent}.{layer}") for layer in layers]
        widths = {module.in_features for module in modules}
        if len(widths) != 1:
            raise InvalidModel(f"{parent}: {', '.join(layers)} do not have the same input width")
        outs = tuple(module.out_features for module in modules)
        yield GroupPlan(f"{parent}.{label}", parent, label, layers, block, widths.pop(), outs)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise InvalidModel(f"the model has no layer {name}, which its family has") from None
    if not isinstance(module, nn.Linear):
        raise InvalidModel(f"{name} is a {type(module).__name__}, not a linear layer")
    return module


def skipped_layers(model: nn.Module, groups: Iterable[GroupPlan], family: Family) -> dict[str, str]:
    """Every linear layer that stays as it is → the reason. Block numbers become ``*``: one line per kind."""
    quantized = {f"{group.parent}.{layer}" for group in groups for layer in group.layers}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in quantized:
            skipped[re.sub(r"\.\d+\.", ".*.", name)] = _reason(name, family)
    return skipped


def _reason(name: str, family: Family) -> str:
    if name == "lm_head":
        return "output head: kept in full precision"
    if family.vision and name.startswith(family.vision):
        return "vision tower: quantizing it costs the most accuracy"
    return "not one of the family's input groups"
