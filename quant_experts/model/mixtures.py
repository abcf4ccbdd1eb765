"""Linear layers in the place of what computes the same: each matrix of a mixture whose experts are stacked in one
parameter, and GPT-2's ``Conv1D``. They are input groups like others."""

from __future__ import annotations

from torch import nn

from quant_experts.forward.modeling_quant_experts import as_linear, experts_of, is_transposed, stacks_of, unstack
from quant_experts.model.weights import Stack
from quant_experts.planning.layer_rules import ELSEWHERE


def unstack_mixtures(model: nn.Module) -> dict[str, Stack]:
    """Replace every module that stacks experts, of a model on the meta device, but in its towers; parameter → its
    pieces."""
    stacks: dict[str, Stack] = {}
    for path, module in list(model.named_modules()):
        if ELSEWHERE.search(path):
            continue
        for name in stacks_of(module) or ():
            whole = module.get_parameter(name).detach()
            pieces = tuple((number, f"{path}.{name}.{number}.weight") for number in range(experts_of(module)))
            stacks[f"{path}.{name}"] = Stack(whole, pieces, is_transposed(module))
        if stacks_of(module) is not None:
            unstack(model, path)
    return stacks


def straighten(model: nn.Module) -> frozenset[str]:
    """Put a linear layer in the place of every ``Conv1D`` of a model on the meta device; the weights that are (in, out)
    in files."""
    paths = set()
    for path, module in list(model.named_modules()):
        linear = as_linear(module)
        if linear is not module and linear is not None:
            model.set_submodule(path, linear.requires_grad_(False))
            paths.add(f"{path}.weight")
    return frozenset(paths)
