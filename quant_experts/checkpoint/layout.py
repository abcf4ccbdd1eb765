"""A fitted input group as named tensors and as an entry of ``quantization_config``; and back into a model.

Names are those of modules in memory. Of a group with parent ``P``, label ``L`` and layers ``q, k``:

    P.q.weight_packed int32 · .weight_scale (out, d/g) · .weight_shape int64 · .bias · .shared_up · .routed_up
    P.L_input_group.smooth (d,) float32 · .shared_down (r_s, d) · .routed_down (N_r, r_r, d) · .router (N_r, d)

Scales, adapters and router are bfloat16, also of float32 models (half the bytes; the fit has rounded them already), and
float16 of float16 models, whose range they share. A loaded model keeps adapters and router so. Checkpoints of version 1
of the method have scales in the model's dtype. Adapters in int8 come with ``<name>_scale``, one scale per row in that
same 16-bit dtype.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.checkpoint.pack import pack
from quant_experts.errors import InvalidCheckpoint, NumericalFailure
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.rotation import Rotation
from quant_experts.forward.modeling_quant_experts import place_group
from quant_experts.model.groups import GroupPlan
from quant_experts.planning.layer_rules import is_of_mixture
from quant_experts.spec.ranks import SHAPE_BITS, SMOOTH_BITS, adapter_bits
from quant_experts.spec.specification import QuantizationSpec

MEMBER = re.compile(r"(\w+)\.(\d+)")
"""A layer in the list of those that stand for a stack of experts."""
BASE = (".weight_packed", ".weight_scale", ".weight_shape")
"""Ends of the names of the tensors that rounding alone would store."""


def adapter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which adapters and router of a model of ``dtype`` are stored."""
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def group_tensors(
    fitted: FittedGroup,
    plan: GroupPlan,
    *,
    dtype: torch.dtype,
    scale_dtype: torch.dtype | None = None,
    biases: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Everything that is stored of a group, by full name, on the CPU.

    ``dtype``: the model's, for biases. ``scale_dtype``: for the scales of weights; None means ``dtype``. ``biases``:
    layer name → (out,), of the layers that have one.
    Raises NumericalFailure naming the tensor when a value does not survive the stored dtype.
    """
    adapters = adapter_dtype(dtype)
    group = f"{plan.parent}.{plan.label}_input_group"
    tensors: dict[str, Tensor] = {}
    for j, layer in enumerate(fitted.layers):
        prefix = f"{plan.parent}.{layer}"
        codes = fitted.codes[j]
        tensors[f"{prefix}.weight_packed"] = pack(codes.cpu(), fitted.weight_bits)
        tensors[f"{prefix}.weight_scale"] = _stored(f"{prefix}.weight_scale", fitted.scales[j], scale_dtype or dtype)
        tensors[f"{prefix}.weight_shape"] = torch.tensor(codes.shape, dtype=torch.int64)
        if biases and layer in biases:
            tensors[f"{prefix}.bias"] = _stored(f"{prefix}.bias", biases[layer], dtype)
        if fitted.shared_down is not None:
            scale = fitted.shared_up_scale[j] if fitted.shared_up_scale else None
            tensors |= _adapter(f"{prefix}.shared_up", fitted.shared_up[j], scale, adapters)
        if fitted.routed_down is not None:
            scale = fitted.routed_up_scale[j] if fitted.routed_up_scale else None
            tensors |= _adapter(f"{prefix}.routed_up", fitted.routed_up[j], scale, adapters)
    if fitted.smooth is not None:
        tensors[f"{group}.smooth"] = _stored(f"{group}.smooth", fitted.smooth, torch.float32)
    if fitted.shared_down is not None:
        tensors |= _adapter(f"{group}.shared_down", fitted.shared_down, fitted.shared_down_scale, adapters)
    if fitted.routed_down is not None and fitted.router is not None:
        tensors |= _adapter(f"{group}.routed_down", fitted.routed_down, fitted.routed_down_scale, adapters)
        tensors[f"{group}.router"] = _stored(f"{group}.router", fitted.router, adapters)
    return tensors


def _adapter(name: str, values: Tensor, scale: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The adapter in ``dtype``; or, with a scale per row, its multiples of the scale in int8 and the scales in
    ``dtype``."""
    if scale is None:
        return {name: _stored(name, values, dtype)}
    codes = (values / scale.unsqueeze(-1)).round_()
    return {name: _stored(name, codes, torch.int8), f"{name}_scale": _stored(f"{name}_scale", scale, dtype)}


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    copy = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    if not bool(torch.isfinite(copy).all()):
        raise NumericalFailure(f"{name}: values up to {tensor.abs().max().item():.3g} cannot be stored as {dtype}")
    return copy


def weight_scale_dtype(spec: QuantizationSpec, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the weight scales of a model of ``dtype`` are stored."""
    return adapter_dtype(dtype) if spec.method_version > 1 else dtype


def group_config(fitted: FittedGroup, plan: GroupPlan, *, dtype: torch.dtype) -> dict[str, Any]:
    """The group's entry in ``quantization_config["groups"]``: all that the loader needs to build its modules.
    ``dtype``: the model's."""
    has_experts = fitted.routed_down is not None and fitted.router is not None
    return {
        "name": plan.name,
        "parent": plan.parent,
        "label": plan.label,
        "layers": list(fitted.layers),
        "group_size": fitted.group_size,
        "weight_bits": fitted.weight_bits,
        "activation_bits": fitted.activation_bits,
        "smooth": fitted.smooth is not None,
        "shared_rank": 0 if fitted.shared_down is None else fitted.shared_down.shape[0],
        "routed_rank": fitted.routed_down.shape[1] if has_experts and fitted.routed_down is not None else 0,
        "experts": fitted.routed_down.shape[0] if has_experts and fitted.routed_down is not None else 0,
        "adapter_dtype": "int8" if fitted.int8_adapters else "16-bit float",
        "adapter_float": str(adapter_dtype(dtype)).removeprefix("torch."),
        **_rotation(fitted.rotation),
    }


def _rotation(rotation: Rotation | None) -> dict[str, Any]:
    """The keys that make a checkpoint one of ``ROTATED_FORMAT``; none without a rotation."""
    if rotation is None:
        return {}
    clip = {} if rotation.clip is None else {"activation_clip": rotation.clip}
    return {"rotation": list(rotation.sizes), **clip}


def join_members(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries of ``quantization_config["groups"]`` with one in the place of those that differ only in the expert of a
    mixture; ``each_member`` of the loader takes them apart again. ``members``: first number, and the one behind the
    last."""
    result: list[dict[str, Any]] = []
    ranges: dict[str, dict[str, Any]] = {}
    for entry in entries:
        match = MEMBER.fullmatch(entry["layers"][0]) if len(entry["layers"]) == 1 else None
        if match is None or not is_of_mixture(entry["parent"], entry["layers"][0]):
            result.append(dict(entry))
            continue
        stack, number = match[1], int(match[2])
        end = f"_{number}"
        names = {name: entry[name].removesuffix(end) for name in ("name", "label")}
        joint = {**entry, **names, "layers": [stack]}
        last = ranges.get(names["name"])
        if last is not None and last == joint | {"members": [last["members"][0], number]}:
            last["members"][1] += 1
            continue
        ranges[names["name"]] = joint | {"members": [number, number + 1]}
        result.append(ranges[names["name"]])
    return result


def install_group(model: nn.Module, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replace the group's linear layers in ``model`` by quantized ones that hold exactly the stored ``tensors``.

    ``tensors``: full names, as ``group_tensors`` gives them; others are ignored. They are converted as transformers
    does while loading; a bias that is not among them stays the model's own.
    Raises InvalidCheckpoint when a tensor is missing or has another shape.
    """
    parent, group_name = entry["parent"], f"{entry['label']}_input_group"
    try:
        group, layers = place_group(model, entry)
    except ValueError as error:
        raise InvalidCheckpoint(str(error)) from error
    for name, module in ((group_name, group), *layers.items()):
        for key, parameter in module.named_parameters():
            full = f"{parent}.{name}.{key}"
            if full not in tensors:
                if key == "bias":
                    continue
                raise InvalidCheckpoint(f"{full}: the tensor is missing")
            if tensors[full].shape != parameter.shape:
                raise InvalidCheckpoint(
                    f"{full}: shape {tuple(tensors[full].shape)}, expected {tuple(parameter.shape)}"
                )
            value = tensors[full].to(device=parameter.device, dtype=parameter.dtype)
            setattr(module, key, nn.Parameter(value, requires_grad=False))


def stored_bits(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Bits that a group takes on disk: (all but biases, integers and scales alone)."""
    return bits_of({name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()})


def bits_of(sizes: Mapping[str, int]) -> tuple[int, int]:
    """The same from the bytes of each tensor, by name."""
    base = sum(size for name, size in sizes.items() if name.endswith(BASE))
    return 8 * sum(size for name, size in sizes.items() if not name.endswith(".bias")), 8 * base


def stored_group_bits(plan: GroupPlan, spec: QuantizationSpec, dtype: torch.dtype) -> int:
    """The most bits that a group can take on disk, known before it is fitted; biases do not count.

    ``dtype``: the model's. A fit ends below this number when a group has too few token-dependent channels for all
    experts; it never ends above.
    """
    words = -(-plan.width * spec.bits.weight_bits // 32)
    scales = plan.width // spec.group_size_for(plan.width)
    scale_bits = 8 * weight_scale_dtype(spec, dtype).itemsize
    rows = sum(plan.outs)
    base = rows * (32 * words + scales * scale_bits) + len(plan.layers) * SHAPE_BITS
    smooth = 0 if spec.smoothing == "none" else plan.width * SMOOTH_BITS
    spec = spec.for_group(of_mixture=plan.of_mixture)
    ranks = spec.ranks_for(rows=rows, width=plan.width, layers=len(plan.layers))
    return base + smooth + adapter_bits(rows, plan.width, ranks, int8=spec.adapter_dtype == "int8")
