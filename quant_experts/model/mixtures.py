"""Mixtures of experts: where a model stacks the matrices of its experts in one parameter, a linear layer takes the
place of each, so that they are input groups like others."""

from __future__ import annotations

from torch import nn

from quant_experts.forward.modeling_quant_experts import is_transposed, stacks_of, unstack
from quant_experts.model.weights import Stack


def unstack_mixtures(model: nn.Module) -> dict[str, Stack]:
    """Replace every module that stacks experts, of a model on the meta device; parameter → its pieces."""
    stacks: dict[str, Stack] = {}
    for path, module in list(model.named_modules()):
        for name in stacks_of(module) or ():
            whole = module.get_parameter(name).detach()
            pieces = tuple((number, f"{path}.{name}.{number}.weight") for number in range(len(whole)))
            stacks[f"{path}.{name}"] = Stack(whole, pieces, is_transposed(module))
        if stacks_of(module) is not None:
            unstack(model, path)
    return stacks
