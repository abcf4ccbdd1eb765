"""One input group is one merged linear layer of vLLM. Loading, repacking, and the operator that a compiled graph calls.

The arithmetic is that of the checkpoint's own loader, ``modeling_quant_experts.py``, of which this package has the
same file: a group with a single layer whose rows are those of the merged ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from quant_experts_vllm.modeling_quant_experts import ADAPTER_DTYPES, InputGroup, QuantizedLinear, activation_of
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
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
        """Empty tensors under the checkpoint's names. Raises ValueError under tensor parallelism."""
        if get_tensor_model_parallel_world_size() > 1:
            raise ValueError(
                "quant-experts-vllm does not split layers between devices yet: scales and routing of a token are "
                "decided over all of its channels. Serve with --tensor-parallel-size 1"
            )
        if not current_platform.is_cpu():
            logger.warning_once(
                "quant-experts-vllm has been tested on CPUs only. Elsewhere it dequantizes for each call; add "
                "--enforce-eager, because routing many tokens cannot be captured in a graph"
            )
        ranks = {key: int(self.entry[key]) for key in ("shared_rank", "routed_rank", "experts")}
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
            **ranks,
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
            **ranks,
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
            linear.bias = layer.bias
        linear.accelerate()
        if linear.accelerated and current_platform.is_cpu():
            linear.repack()

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: (..., d); returns (..., out). ``bias`` is already part of the layer."""
        linear: QuantizedLinear = layer.quant_experts[1]
        if torch.compiler.is_compiling():
            return torch.ops.quant_experts.merged_linear(x, linear.out_features, self.prefix)
        return linear(x)


@torch.library.custom_op("quant_experts::merged_linear", mutates_args=())
def merged_linear(x: Tensor, out_features: int, prefix: str) -> Tensor:
    """One node of a compiled graph: which experts a token takes is decided while it runs."""
    layer = get_forward_context().no_compile_layers[prefix]
    return layer.quant_experts[1](x)


@merged_linear.register_fake
def _(x: Tensor, out_features: int, prefix: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _expect(layer: nn.Module, name: str, parameter: nn.Parameter, parts: Sequence[int]) -> None:
    """A tensor that comes whole (no ``parts``), or in rows of merged layers, ``parts`` output channels each."""
    dim = 1 if name.startswith("routed_up") else 0  # routed_up: (N_r, out, r_r)

    def load(parameter: nn.Parameter, loaded: Tensor, shard: str | int | tuple[int, ...] | None = None) -> None:
        target = parameter.data
        if parts and shard is not None:
            indices = shard if isinstance(shard, tuple) else (_QKV.get(shard, shard),)
            target = target.narrow(dim, sum(parts[: indices[0]]), sum(parts[i] for i in indices))
        if target.shape != loaded.shape:
            raise ValueError(f"{layer.prefix}.{name}: shape {tuple(loaded.shape)}, expected {tuple(target.shape)}")
        target.copy_(loaded)
        parameter.rows_missing -= loaded.shape[dim]

    own = nn.Parameter(parameter.data, requires_grad=False)
    own.weight_loader, own.rows_missing = load, parameter.shape[dim]
    layer.register_parameter(name, own)


def _expect_and_drop(layer: nn.Module, name: str) -> None:
    """A tensor that nothing is computed from: the shape, and the empty mark in the place of a stock model's weight."""

    def load(parameter: nn.Parameter, loaded: Tensor, shard: str | int | tuple[int, ...] | None = None) -> None:
        if name == "weight" and loaded.numel():
            raise ValueError(f"{layer.prefix}: the checkpoint has an unquantized weight for a quantized layer")

    own = nn.Parameter(torch.empty(0), requires_grad=False)
    own.weight_loader, own.rows_missing = load, 0
    layer.register_parameter(name, own)
