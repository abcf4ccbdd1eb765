"""Which models the walk knows, and the input groups inside the blocks of their stacks.

An input group is the set of sibling linear layers that read the same activation (method.md, section 2). What is known
about each family is in ``families/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from quant_experts.errors import InvalidModel, UnsupportedModel
from quant_experts.model.families.family import Family, Vision
from quant_experts.model.families.stack import LANGUAGE, Groups, Stack
from quant_experts.model.families.table import FAMILIES, ORIGINALS

__all__ = [
    "FAMILIES",
    "Family",
    "GroupPlan",
    "block_prefix",
    "family_of",
    "plan_groups",
    "skipped_layers",
    "walked_modules",
]


@dataclass(frozen=True)
class GroupPlan:
    """One input group of a model: ``width`` input channels; ``outs``: output width of each layer.

    ``block``: number among all blocks that are walked; ``index``: of the block within its stack, None behind them.
    """

    name: str
    parent: str
    label: str
    layers: tuple[str, ...]
    block: int
    width: int
    outs: tuple[int, ...]
    stack: Stack = LANGUAGE
    index: int | None = 0

    @property
    def weights(self) -> int:
        """Number of weights that quantizing this group quantizes."""
        return self.width * sum(self.outs)

    @property
    def of_memory(self) -> bool:
        """Whether the group reads what the stack before its own has put out, not the tokens of its own stack."""
        return self.name.endswith(tuple(f".{group}" for group in self.stack.memory))

    @property
    def reads_audio(self) -> bool:
        return self.stack.media == "audio" or self.of_memory


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
    """Module path of a block of the last stack."""
    return family.decoder.block(block)


def plan_groups(model: nn.Module, family: Family, *, vision: Vision = "keep") -> list[list[GroupPlan]]:
    """The input groups of every block that is walked, in the order in which they run: stack by stack, and what a stack
    has behind its blocks as one block more. ``model`` may be on the meta device.

    Raises InvalidModel when a layer of the table is missing: the configuration then is not what the family promises.
    """
    plans: list[list[GroupPlan]] = []
    for stack in family.stacks(vision):
        count = len(list(model.get_submodule(f"{stack.module}.{stack.layers}").children()))
        for index in range(count):
            block = stack.block(index)
            groups = [(f"{block}.{within}".removesuffix("."), label, layers) for within, label, layers in stack.groups]
            plans.append([_plan(model, stack, len(plans), index, *group) for group in groups])
        if stack.behind:
            groups = [(parent, label, ls) for path, label, ls in stack.behind for parent in _each(model, path)]
            plans.append([_plan(model, stack, len(plans), None, *group) for group in groups])
    return plans


def _plan(
    model: nn.Module, stack: Stack, block: int, index: int | None, parent: str, label: str, layers: tuple[str, ...]
) -> GroupPlan:
    modules = [_linear(model, f"{parent}.{layer}") for layer in layers]
    widths = {module.in_features for module in modules}
    if len(widths) != 1:
        raise InvalidModel(f"{parent}: {', '.join(layers)} do not have the same input width")
    outs = tuple(module.out_features for module in modules)
    return GroupPlan(f"{parent}.{label}", parent, label, layers, block, widths.pop(), outs, stack, index)


def _each(model: nn.Module, path: str) -> list[str]:
    """``path``, or with ``*`` at its end one path for each entry of the list."""
    if not path.endswith(".*"):
        return [path]
    entries = path.removesuffix(".*")
    return [f"{entries}.{name}" for name, _ in model.get_submodule(entries).named_children()]


def walked_modules(plans: Sequence[GroupPlan]) -> tuple[str, ...]:
    """Module paths of one walked block: itself, or the modules behind the blocks of its stack."""
    first = plans[0]
    return (first.stack.block(first.index),) if first.index is not None else _distinct(plan.parent for plan in plans)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


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
    if name == family.head:
        return "output head: kept in full precision"
    if family.vision and name.startswith((family.vision, *family.between)):
        return "vision tower: quantizing it costs the most accuracy"
    return "not one of the family's input groups"
