"""Which models the walk knows, and the input groups inside their decoder blocks.

An input group is the set of sibling linear layers that read the same activation (method.md, section 2). What is known
about each family is in ``families/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from quant_experts.errors import InvalidModel, UnsupportedModel
from quant_experts.families.family import Family, Groups
from quant_experts.families.table import FAMILIES, ORIGINALS

__all__ = ["FAMILIES", "Family", "GroupPlan", "block_prefix", "family_of", "plan_groups", "skipped_layers"]


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
    """The family of a ``config.json``.

    Raises UnsupportedModel: with the list of supported ones, or with what this model has that its family's walk lacks.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    classes = {name: known.model_class for name, known in FAMILIES.items()} | ORIGINALS
    supported = ", ".join(f"{name} ({model_class})" for name, model_class in classes.items())
    if family is None:
        raise UnsupportedModel(f"config.json: model_type {model_type!r} is not supported; supported: {supported}")
    architectures = config.get("architectures") or [family.model_class]
    if family.model_class not in architectures:
        raise UnsupportedModel(
            f"config.json: architecture {', '.join(map(str, architectures))} is not supported; supported: {supported}"
        )
    reason = family.refusal(config) if family.refusal else None
    if reason:
        raise UnsupportedModel(f"config.json: {reason}")
    return family if family.text_model is None else replace(family, groups=_text_groups(config, family))


def _text_groups(config: dict[str, Any], family: Family) -> Groups:
    """The groups of the language model inside a model that may have any."""
    text = config.get("text_config")
    inside = text.get("model_type", family.text_model) if isinstance(text, dict) else family.text_model
    known = {name: text for name, text in FAMILIES.items() if text.language_model == "model"}
    if inside not in known:
        raise UnsupportedModel(
            f"config.json: a {config['model_type']} model with language model {inside!r} is not supported; "
            f"supported language models: {', '.join(known)}"
        )
    return known[inside].groups


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
        parent = f"{block_prefix(family, block)}.{within}".removesuffix(".")
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
    if family.vision and name.startswith((family.vision, *family.between)):
        return "vision tower: quantizing it costs the most accuracy"
    return "not one of the family's input groups"
