"""The input groups inside the blocks of a model's stacks, as the walk goes through them.

An input group is the set of sibling linear layers that read the same activation (method.md, section 2). They are found
in the model (``discovery.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from quant_experts.errors import InvalidModel
from quant_experts.model.families.stack import LANGUAGE, Stack
from quant_experts.model.manifest import Manifest, Vision
from quant_experts.planning.layer_rules import is_of_mixture


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
    def of_mixture(self) -> bool:
        """Whether the group belongs to an expert that sees only the tokens that a router sends to it."""
        return is_of_mixture(self.parent, self.layers[0])

    @property
    def of_memory(self) -> bool:
        """Whether the group reads what the stack before its own has put out, not the tokens of its own stack."""
        return self.name.endswith(tuple(f".{group}" for group in self.stack.memory))

    @property
    def reads_audio(self) -> bool:
        return self.stack.media == "audio" or self.of_memory


def block_prefix(manifest: Manifest, block: int) -> str:
    """Module path of a block of the last stack."""
    return manifest.decoder.block(block)


def plan_groups(model: nn.Module, manifest: Manifest, *, vision: Vision = "keep") -> list[list[GroupPlan]]:
    """The input groups of every block that is walked, in the order in which they run: stack by stack, and what a stack
    has behind its blocks as one block more. ``model`` may be on the meta device.

    Raises InvalidModel when a layer is missing, or is no linear layer.
    """
    plans: list[list[GroupPlan]] = []
    for stack in manifest.stacks(vision):
        count = len(list(model.get_submodule(f"{stack.module}.{stack.layers}").children()))
        for index in range(count):
            block = stack.block(index)
            groups = [
                (f"{block}.{within}".removesuffix("."), label, layers)
                for within, label, layers in stack.groups_of(index)
            ]
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
        raise InvalidModel(f"the model has no layer {name}, which its groups have") from None
    if not isinstance(module, nn.Linear):
        raise InvalidModel(f"{name} is a {type(module).__name__}, not a linear layer")
    return module


def skipped_layers(groups: Iterable[GroupPlan], manifest: Manifest) -> dict[str, str]:
    """What stays as it is → the reason. Block numbers are ``*``: one line per kind."""
    quantized = {re.sub(r"\.\d+(?=\.)", ".*", f"{group.parent}.{layer}") for group in groups for layer in group.layers}
    return {name: reason for name, reason in manifest.skipped.items() if name not in quantized}
