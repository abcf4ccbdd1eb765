"""``quantization_config`` of a checkpoint as vLLM asks for it: which linear layers belong to which input group."""

from __future__ import annotations

import re
from typing import Any

import torch
from quant_experts_vllm.linear import GROUP_PREFIX, QuantExpertsLinearMethod
from quant_experts_vllm.modeling_quant_experts import FORMAT, QUANT_METHOD, ROTATED_FORMAT
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.models.utils import WeightsMapper

logger = init_logger(__name__)
FORMATS = (FORMAT, ROTATED_FORMAT)
WRAPPED_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""vLLM has a module ``vision_model`` in these vision towers, as repositories on the hub do. transformers 5 has none,
and a checkpoint has the names of transformers."""


@register_quantization_config(QUANT_METHOD)
class QuantExpertsConfig(QuantizationConfig):  # type: ignore[misc]
    """Every linear layer of an input group, by its name in vLLM's model, with the group's entry."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__()
        self.groups = groups
        self.wrapped_tower = False
        self.group_of = {f"{group['parent']}.{layer}": group for group in groups for layer in group["layers"]}

    def __repr__(self) -> str:
        return f"QuantExpertsConfig({len(self.groups)} input groups)"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantExpertsConfig:
        """Raises ValueError for another format, for experts of a mixture, or one that lists no groups."""
        if config.get("format") not in FORMATS:
            raise ValueError(
                f"the checkpoint has Quant Experts format {config.get('format')}, this plugin reads the formats "
                f"{' and '.join(map(str, FORMATS))}: install a newer quant-experts-vllm"
            )
        if not config.get("groups"):
            raise ValueError("config.json: quantization_config lists no groups; download the checkpoint again")
        mixtures = [group["name"] for group in config["groups"] if "members" in group]
        if mixtures:
            raise ValueError(f"{mixtures[0]}: experts of a mixture; this plugin does not serve them yet")
        return cls(config["groups"])

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        tower = getattr(hf_config, "vision_config", None)
        self.wrapped_tower = getattr(tower, "model_type", None) in WRAPPED_TOWERS

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        self.group_of = hf_to_vllm_mapper.apply_dict(self.group_of)

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """What a group holds once goes to its first layer, ``qkv_input_group.router`` to ``q_proj.group_router``.

        vLLM's own mapper then turns ``q_proj`` into ``qkv_proj``. Raises ValueError when two towers of a model give
        one name to groups of different layers.
        """
        first_layers: dict[str, str] = {}
        for group in self.groups:
            tail = re.split(r"\d+", group["parent"])[-1].strip(".")  # "self_attn"; empty where it is the block itself
            place = f"{tail}.{group['label']}" if tail else group["label"]
            first = f"{tail}.{group['layers'][0]}" if tail else group["layers"][0]
            if first_layers.setdefault(place, first) != first:
                raise ValueError(f"{group['name']}: {place} begins with {first_layers[place]} elsewhere in the model")
        renamed = {
            re.compile(rf"(^|\.){re.escape(place)}_input_group\."): rf"\g<1>{first}.{GROUP_PREFIX}"
            for place, first in first_layers.items()
        }
        if self.wrapped_tower:
            renamed[re.compile(r"(^|\.)vision_tower\.(?!vision_model\.)")] = r"\g<1>vision_tower.vision_model."
        return WeightsMapper(orig_to_new_regex=renamed)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Raises ValueError when vLLM merges other layers than the checkpoint's group has."""
        if not isinstance(layer, LinearBase):
            return None
        parent, _, name = prefix.rpartition(".")
        merged = [f"{parent}.{part}" for part in self.packed_modules_mapping.get(name, [name])]
        if not any(part in self.group_of for part in merged):
            return UnquantizedLinearMethod()
        group = self.group_of.get(merged[0])
        if group is None or [part.removeprefix(f"{parent}.") for part in merged] != group["layers"]:
            raise ValueError(
                f"{prefix}: vLLM merges {', '.join(merged)}, which are not the layers of one input group of the "
                "checkpoint; this model is not supported by quant-experts-vllm"
            )
        return QuantExpertsLinearMethod(group, prefix)
