"""A group of layers with drawn numbers, its formula in float64, and how far an output is from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quant_experts.checkpoint.pack import pack
from quant_experts.forward.modeling_quant_experts import InputGroup, QuantizedLinear, quantize_tokens, rotate

NAMES = ("q", "k")


def drawn(
    bits: int,
    width: int,
    group_size: int,
    *,
    activation_bits: int,
    experts: int = 3,
    int8: bool = False,
    seed: int = 0,
    rotation: tuple[int, int] | None = None,
    clip: float | None = None,
) -> tuple[InputGroup, list[QuantizedLinear]]:
    """A group with two layers of drawn numbers: scales of both signs, every code the lowest one included."""
    random = torch.Generator().manual_seed(seed)
    ranks = {"shared_rank": 5, "routed_rank": 4, "experts": experts}
    like = {"adapter_dtype": torch.bfloat16, "device": "cpu", "int8_adapters": int8}
    group = InputGroup(
        width,
        NAMES,
        activation_bits=activation_bits,
        smooth=experts > 0,
        rotation=rotation,
        activation_clip=clip,
        **ranks,
        **like,
    )
    layers = []
    for name, out in zip(NAMES, (48, 130), strict=True):
        bias = torch.nn.Parameter(torch.randn(out, generator=random).bfloat16()) if name == "q" else None
        layer = QuantizedLinear(
            name,
            group,
            width,
            out,
            weight_bits=bits,
            group_size=group_size,
            bias=bias,
            dtype=torch.bfloat16,
            **ranks,
            **like,
        )
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, width), generator=random, dtype=torch.int8)
        codes[0] = -(2 ** (bits - 1))
        assert layer.weight_packed is not None
        layer.weight_packed.data = pack(codes, bits)
        layers.append(layer)
    for module in (group, *layers):
        for key, parameter in module.named_parameters():
            if key in ("weight_packed", "weight_shape", "bias"):
                continue
            if parameter.dtype == torch.int8:
                parameter.data = torch.randint(-127, 128, parameter.shape, generator=random, dtype=torch.int8)
            else:
                size = 0.01 if key.endswith("_scale") else 0.3
                parameter.data = (torch.randn(parameter.shape, generator=random) * size).to(parameter.dtype)
    if group.smooth is not None:
        group.smooth.data = group.smooth.data.abs() + 0.5
    return group.requires_grad_(False), [layer.requires_grad_(False) for layer in layers]


def outputs(layers: list[QuantizedLinear], x: Tensor) -> list[Tensor]:
    return [layer(x) for layer in layers]


def in_float64(group: InputGroup, layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The formula of the layer, its activations quantized as the layer quantizes them, all sums in float64."""
    h = x.float() if group.smooth is None else x.float() / group.smooth
    turned = h if group.rotation is None else rotate(h, group.rotation)
    quantized = turned.to(x.dtype).double()
    if group.activation_bits != 16:
        codes, scale = quantize_tokens(turned, group.activation_bits, group.activation_clip)
        quantized = codes.double() * scale.double()
    y = quantized @ layer.base_weight(torch.float64).t()
    if layer.bias is not None:
        y = y + layer.bias.double()
    low = h.to(x.dtype).double()

    def whole(matrix: Tensor | None, scale: Tensor | None) -> Tensor:
        assert matrix is not None
        return matrix.double() if scale is None else matrix.double() * scale.double().unsqueeze(-1)

    y = (
        y
        + low
        @ whole(group.shared_down, group.shared_down_scale).t()
        @ whole(layer.shared_up, layer.shared_up_scale).t()
    )
    if group.router is not None:
        choice = F.linear(h.abs(), group.router.float()).argmin(-1)
        down, up = (
            whole(group.routed_down, group.routed_down_scale)[choice],
            whole(layer.routed_up, layer.routed_up_scale)[choice],
        )
        y = y + torch.einsum("tor,trd,td->to", up, down, low)
    return y


def error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm()) if exact.numel() else 0.0
