"""Weights in the model's dtype, with everything folded into them that does not depend on the token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quant_experts.export.source import ComputedTensor, Source, input_group
from quant_experts.forward.modeling_quant_experts import (
    UNQUANTIZED_BITS,
    activation_of,
    dequantize,
    rotate,
    unpack,
)


def dequantized_losses(source: Source) -> Iterator[str]:
    """What the export does not have that the checkpoint has."""
    yield from activation_losses(source)
    if any(entry["experts"] for entry in source.groups):
        yield "routed experts are left out: which one corrects a token depends on the token"


def activation_losses(source: Source) -> Iterator[str]:
    bits = sorted({entry["activation_bits"] for entry in source.groups} - {UNQUANTIZED_BITS})
    if bits:
        names = " and ".join(f"A{each}" for each in bits)
        yield f"activations stay in full precision instead of {names}"


def dequantized_tensors(source: Source) -> dict[str, ComputedTensor]:
    """The weight of every quantized layer, (out, d) in the model's dtype, by name."""
    tensors = {}
    for path, entry in source.layers:
        out, groups = source.tensors[f"{path}.weight_scale"].shape
        shape = (out, groups * int(entry["group_size"]))
        tensors[f"{path}.weight"] = ComputedTensor(source.dtype, shape, partial(_weight, source, path, entry))
    return tensors


def _weight(source: Source, path: str, entry: Mapping[str, Any]) -> Tensor:
    """(W_q T + up_s down_s) / s, the part of the layer that is linear in x. (out, d) float32."""
    scales = source.tensors[f"{path}.weight_scale"].read()
    columns = scales.shape[1] * int(entry["group_size"])
    codes = unpack(source.tensors[f"{path}.weight_packed"].read(), entry["weight_bits"], columns)
    weight = dequantize(codes, scales, torch.float32)
    sizes = activation_of(entry, columns)["rotation"]
    if sizes is not None:
        weight = rotate(weight, sizes)
    if entry["shared_rank"]:
        down = _adapter(source, f"{input_group(entry)}.shared_down")
        weight += _adapter(source, f"{path}.shared_up") @ down
    if entry["smooth"]:
        weight /= source.tensors[f"{input_group(entry)}.smooth"].read()
    return weight


def _adapter(source: Source, name: str) -> Tensor:
    """float32, of an adapter in int8 or in a 16-bit float."""
    matrix = source.tensors[name].read().float()
    scale = source.tensors.get(f"{name}_scale")
    return matrix if scale is None else matrix * scale.read().float().unsqueeze(-1)
