"""The error of one fitted group on held-out tokens: after the base, with the shared expert, with the routed experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quant_experts.fit.experts.router import route
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.quantizer import round_tokens
from quant_experts.forward.modeling_quant_experts import dequantize, rotate
from quant_experts.report.data import StageErrors

CHUNK = 1024
EXACT_DB = 200.0
"""Reported for an output without any error; float32 products do not resolve more."""


@dataclass(frozen=True)
class GroupErrors:
    """Relative squared output errors on T tokens, over all layers of the group together.

    ``error.base`` is the integer part alone. Where columns are exempt they are missing from it, so that it may be
    large and even near 1; the shared expert carries them. ``expert_usage``: share of tokens per expert, empty without
    routed experts.
    ``error_vision`` and ``error_text`` are None when no such token was there.
    """

    tokens: int
    error: StageErrors
    error_vision: StageErrors | None
    error_text: StageErrors | None
    sqnr_db: float
    expert_usage: tuple[float, ...]


@torch.no_grad()
def evaluate_group(fitted: FittedGroup, weights: Mapping[str, Tensor], tokens: Tensor, vision: Tensor) -> GroupErrors:
    """weights: the original layers, name → (out_j, d); tokens: (T, d), any float dtype; vision: (T,) bool.

    Float32 arithmetic with the stored values; the model's own dtype adds its rounding on top. Raises ValueError for T
    = 0.
    """
    if tokens.shape[0] == 0:
        raise ValueError(f"input group {fitted.name}: no held-out token to evaluate")
    device = fitted.codes[0].device
    errors, energy, routes = [], [], []
    for rows in torch.split(tokens, CHUNK):
        x = rows.to(device).float()
        expert = route_tokens(fitted, x)
        squared, full = token_errors(fitted, weights, x, expert)
        errors.append(squared)
        energy.append(full)
        routes.append(expert)
    squared_error, output, experts = torch.cat(errors).double(), torch.cat(energy).double(), torch.cat(routes)
    is_vision = vision.to(device)
    overall = _stages(squared_error, output)
    return GroupErrors(
        tokens=tokens.shape[0],
        error=overall,
        error_vision=_stages(squared_error[is_vision], output[is_vision]) if bool(is_vision.any()) else None,
        error_text=_stages(squared_error[~is_vision], output[~is_vision]) if bool((~is_vision).any()) else None,
        sqnr_db=_decibel(overall.routed),
        expert_usage=_usage(fitted, experts),
    )


def route_tokens(fitted: FittedGroup, x: Tensor) -> Tensor:
    """The expert of each token, (T,) int64; x: (T, d) float32, before scaling. All zero without routed experts."""
    if fitted.router is None:
        return torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return route(fitted.router, x if fitted.smooth is None else x / fitted.smooth)


def token_errors(
    fitted: FittedGroup, weights: Mapping[str, Tensor], x: Tensor, expert: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared error per token and stage, (T, 3), and squared output per token, (T,), summed over the layers."""
    scaled = x if fitted.smooth is None else x / fitted.smooth
    rotation = fitted.rotation
    turned = scaled if rotation is None else rotate(scaled, rotation.sizes)
    integer_input = round_tokens(turned, fitted.activation_bits, None if rotation is None else rotation.clip)
    squared = torch.zeros(x.shape[0], 3, device=x.device)
    energy = torch.zeros(x.shape[0], device=x.device)
    for j, layer in enumerate(fitted.layers):
        exact = x @ weights[layer].to(x.device).float().T
        error = exact - integer_input @ dequantize(fitted.codes[j], fitted.scales[j], torch.float32).T
        energy += exact.square().sum(-1)
        squared[:, 0] += error.square().sum(-1)
        if fitted.shared_down is not None:
            error = error - (scaled @ fitted.shared_down.T) @ fitted.shared_up[j].T
        squared[:, 1] += error.square().sum(-1)
        if fitted.routed_down is not None:
            error = error - _routed_output(scaled, expert, fitted.routed_down, fitted.routed_up[j])
        squared[:, 2] += error.square().sum(-1)
    return squared, energy


def _routed_output(x: Tensor, expert: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """up_{i*} (down_{i*} x) of each token, grouped by expert. Returns (T, out)."""
    output = x.new_zeros(x.shape[0], up.shape[1])
    for i in range(down.shape[0]):
        mine = expert == i
        output[mine] = (x[mine] @ down[i].T) @ up[i].T
    return output


def _stages(squared: Tensor, energy: Tensor) -> StageErrors:
    total = float(energy.sum())
    # A group whose outputs are all zero has no relative error: its error is divided by one.
    base, shared, routed = (float(stage) / (total if total > 0 else 1.0) for stage in squared.sum(0))
    return StageErrors(base=base, shared=shared, routed=routed)


def _decibel(error: float) -> float:
    return min(-10 * math.log10(error), EXACT_DB) if error > 0 else EXACT_DB


def _usage(fitted: FittedGroup, experts: Tensor) -> tuple[float, ...]:
    if fitted.router is None:
        return ()
    counts = torch.bincount(experts, minlength=fitted.router.shape[0]).double()
    return tuple((counts / counts.sum()).tolist())
