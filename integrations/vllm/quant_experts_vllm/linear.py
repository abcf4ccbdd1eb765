"""One input group is one merged linear layer of vLLM. Loading, repacking, and the operator that a compiled graph calls.

The arithmetic is that of the checkpoint's own loader, ``modeling_quant_experts.py``, of which this package has the
same file: a group with a single layer whose rows are those of the merged ones.

Under tensor parallelism every rank holds a part of the *rows* of every layer, of those too whose input vLLM splits. A
token's scale, rotation and expert are decided over all of its channels, so such a layer gathers its input first; each
rank then computes its own outputs, all others are zero, and vLLM's sum over the ranks puts them together. Ranks agree,
and outputs are those of one rank to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from quant_experts_vllm.modeling_quant_experts import ADAPTER_DTYPES, InputGroup, QuantizedLinear, activation_of
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.platforms import current_platform

logger = init_logger(__name__)
GROUP_PREFIX = "group_"
_MERGED = "merged"
_QKV = {"q": 0, "k": 1, "v": 2}


class QuantExpertsLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """``entry``: of ``quantization_config["groups"]``; ``prefix``: the layer's name in the model."""

    def __init__(self, entry: dict[str, Any], prefix: str) -> None:
        self.entry, self.prefix = entry, prefix

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **_: Any,
    ) -> None:
        """Empty tensors under the checkpoint's names. Raises ValueError for outputs that the ranks cannot share."""
        ranks = get_tensor_model_parallel_world_size()
        layer.input_is_split = input_size_per_partition < input_size
        if layer.input_is_split:
            if output_size % ranks:
                raise ValueError(
                    f"{self.prefix}: {output_size} outputs cannot be shared by {ranks} ranks; serve with another "
                    "--tensor-parallel-size"
                )
            output_partition_sizes = [output_size // ranks]
        if not current_platform.is_cpu():
            logger.warning_once(
                "quant-experts-vllm has been tested on CPUs only. Elsewhere it dequantizes for each call; add "
                "--enforce-eager, because routing many tokens cannot be captured in a graph"
            )
        sizes = {key: int(self.entry[key]) for key in ("shared_rank", "routed_rank", "experts")}
        int8_adapters = self.entry.get("adapter_dtype") == "int8"
        like = {
            "adapter_dtype": ADAPTER_DTYPES.get(self.entry.get("adapter_float", ""), params_dtype),
            "device": torch.get_default_device(),
            "int8_adapters": int8_adapters,
        }
        group = InputGroup(
            input_size,
            (_MERGED,),
            **activation_of(self.entry, input_size),
            **sizes,
            **like,
        )
        linear = QuantizedLinear(
            _MERGED,
            group,
            input_size,
            sum(output_partition_sizes),
            weight_bits=int(self.entry["weight_bits"]),
            group_size=int(self.entry["group_size"]),
            bias=None,
            dtype=params_dtype,
            **sizes,
            **like,
        )
        # Not as submodules: vLLM looks for the checkpoint's names in the layer itself.
        layer.quant_experts = (group, linear)
        for name, parameter in group.named_parameters():
            _expect(layer, f"{GROUP_PREFIX}{name}", parameter, [])
        for name, parameter in linear.named_parameters():
            if name != "weight_shape":
                _expect(layer, name, parameter, output_partition_sizes)
        for name in ("weight_shape", "weight"):
            _expect_and_drop(layer, name)
        places = get_current_vllm_config().compilation_config.static_forward_context
        if self.prefix in places:
            raise ValueError(f"two layers are called {self.prefix}")
        places[self.prefix] = layer

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Raises ValueError when the checkpoint has not filled every tensor."""
        group, linear = layer.quant_experts
        for name, parameter in [*layer.named_parameters(recurse=False)]:
            rows = getattr(parameter, "rows_missing", None)
            if rows is None:
                continue
            if rows:
                raise ValueError(f"{self.prefix}: {name} is missing from the checkpoint, or {rows} rows of it")
            owner, own = (group, name.removeprefix(GROUP_PREFIX)) if name.startswith(GROUP_PREFIX) else (linear, name)
            if own in owner._parameters:
                setattr(owner, own, nn.Parameter(parameter.data, requires_grad=False))
            delattr(layer, name)
        if layer.bias is not None and not layer.skip_bias_add:
            linear.bias = _own_rows(layer.bias, linear.out_features) if layer.input_is_split else layer.bias
        linear.accelerate()
        if linear.accelerated and current_platform.is_cpu():
            linear.repack()

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: (..., d); returns (..., out). ``bias`` is already part of the layer."""
        if torch.compiler.is_compiling():
            return torch.ops.quant_experts.merged_linear(x, _outputs(layer), self.prefix)
        return _computed(layer, x)


@torch.library.custom_op("quant_experts::merged_linear", mutates_args=())
def merged_linear(x: Tensor, out_features: int, prefix: str) -> Tensor:
    """One node of a compiled graph: which experts a token takes is decided while it runs."""
    return _computed(get_forward_context().no_compile_layers[prefix], x)


@merged_linear.register_fake
def _(x: Tensor, out_features: int, prefix: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _outputs(layer: nn.Module) -> int:
    own: int = layer.quant_experts[1].out_features
    return own * get_tensor_model_parallel_world_size() if layer.input_is_split else own


def _computed(layer: nn.Module, x: Tensor) -> Tensor:
    """x: (..., d), or this rank's part of the channels. Returns (..., out); where the input is split, zero outside of
    this rank's rows."""
    linear: QuantizedLinear = layer.quant_experts[1]
    if not layer.input_is_split:
        return linear(x)
    y = x.new_zeros((*x.shape[:-1], _outputs(layer)))
    own = linear.out_features
    y.narrow(-1, get_tensor_model_parallel_rank() * own, own).copy_(linear(tensor_model_parallel_all_gather(x)))
    return y


def _own_rows(rows: Tensor, own: int, dim: int = 0) -> Tensor:
    """This rank's ``own`` rows; ranks beyond the number of parts have the same ones, as vLLM has heads of keys."""
    copies = max(1, get_tensor_model_parallel_world_size() * own // rows.shape[dim])
    return rows.narrow(dim, get_tensor_model_parallel_rank() // copies * own, own)


def _expect(layer: nn.Module, name: str, parameter: nn.Parameter, parts: Sequence[int]) -> None:
    """A tensor that comes whole (no ``parts``), or in rows of merged layers, ``parts`` output channels each."""
    dim = 1 if name.startswith("routed_up") else 0  # routed_up: (N_r, out, r_r)

    def load(parameter: nn.Parameter, loaded: Tensor, shard: str | int | tuple[int, ...] | None = None) -> None:
        target = parameter.data
        if parts and shard is not None:
            indices = shard if isinstance(shard, tuple) else (_QKV.get(shard, shard),)
            target = target.narrow(dim, sum(parts[: indices[0]]), sum(parts[i] for i in indices))
            loaded = _own_parts(loaded, [parts[i] for i in indices], dim)
        elif parts:
            loaded = _own_parts(loaded, [sum(parts)], dim)
        if target.shape != loaded.shape:
            raise ValueError(f"{layer.prefix}.{name}: shape {tuple(loaded.shape)}, expected {tuple(target.shape)}")
        target.copy_(loaded)
        parameter.rows_missing -= loaded.shape[dim]

    own = nn.Parameter(parameter.data, requires_grad=False)
    own.weight_loader, own.rows_missing = load, parameter.shape[dim]
    layer.register_parameter(name, own)


def _own_parts(loaded: Tensor, parts: Sequence[int], dim: int) -> Tensor:
    """This rank's rows of layers that lie behind each other in ``loaded``, ``parts`` rows of each; all of them where
    their number is not a multiple, for the check of the shape to refuse."""
    times, rest = divmod(loaded.shape[dim], sum(parts)) if loaded.dim() > dim else (1, 0)
    if rest or times < 2:
        return loaded
    whole = loaded.split([times * part for part in parts], dim)
    return torch.cat([_own_rows(rows, part, dim) for rows, part in zip(whole, parts, strict=True)], dim)


def _expect_and_drop(layer: nn.Module, name: str) -> None:
    """A tensor that nothing is computed from: the shape, and the empty mark in the place of a stock model's weight."""

    def load(parameter: nn.Parameter, loaded: Tensor, shard: str | int | tuple[int, ...] | None = None) -> None:
        if name == "weight" and loaded.numel():
            raise ValueError(f"{layer.prefix}: the checkpoint has an unquantized weight for a quantized layer")

    own = nn.Parameter(torch.empty(0), requires_grad=False)
    own.weight_loader, own.rows_missing = load, 0
    layer.register_parameter(name, own)
