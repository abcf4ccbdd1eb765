"""The checkpoint that is exported: its configuration, its groups, and its tensors, one in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from quant_experts.checkpoint.read import read_contents
from quant_experts.checkpoint.shards import TensorSource, stored_tensors
from quant_experts.errors import InvalidCheckpoint, InvalidSpec
from quant_experts.forward.modeling_quant_experts import marks_of
from quant_experts.planning.headers import INDEX


@dataclass(frozen=True)
class ComputedTensor:
    """A tensor that is computed when it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    compute: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        return self.compute().to(self.dtype)


@dataclass(frozen=True)
class Source:
    """A checkpoint. ``config``: its config.json. ``tensors``: by the names of modules in memory."""

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSource]

    @property
    def groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.config["quantization_config"]["groups"]
        return groups

    @property
    def layers(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Path of each quantized layer, and the entry of its group."""
        for entry in self.groups:
            for layer in entry["layers"]:
                yield f"{entry['parent']}.{layer}", entry

    @property
    def others(self) -> dict[str, TensorSource]:
        """The tensors that no group holds, biases of quantized layers among them."""
        inside = tuple(f"{path}." for path, _ in self.layers) + tuple(f"{input_group(e)}." for e in self.groups)
        marks = {name for entry in self.groups for name in marks_of(entry)}
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if name not in marks and (name.endswith(".bias") or not name.startswith(inside))
        }

    @cached_property
    def dtype(self) -> torch.dtype:
        """The model's."""
        name = self.config.get("dtype") or self.config.get("torch_dtype")
        dtype = getattr(torch, str(name), None)
        if not isinstance(dtype, torch.dtype):
            raise InvalidCheckpoint(f"{self.directory}: config.json does not say the model's dtype")
        return dtype

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model that would be loaded if it were not quantized, without weights."""
        plain = {key: value for key, value in self.config.items() if key not in ("quantization_config", "auto_map")}
        architecture = plain["architectures"][0]
        config = AutoConfig.for_model(**plain)
        with torch.device("meta"):
            model: PreTrainedModel = getattr(transformers, architecture)._from_config(config)
        return model

    def linear_layers(self) -> Iterator[str]:
        """Paths of all linear layers of the model."""
        return (path for path, module in self.model.named_modules() if isinstance(module, nn.Linear))


def input_group(entry: Mapping[str, Any]) -> str:
    """Path of the module that holds what a group's layers share."""
    return f"{entry['parent']}.{entry['label']}_input_group"


def open_source(directory: Path) -> Source:
    """Raises InvalidCheckpoint when the directory is not a whole checkpoint, InvalidSpec for a mixture of experts."""
    read_contents(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    mixtures = [entry["parent"] for entry in config["quantization_config"]["groups"] if "members" in entry]
    if mixtures:
        raise InvalidSpec(
            f"{mixtures[0]} are experts of a mixture, which no export format can hold yet: load the "
            "checkpoint with transformers and trust_remote_code=True"
        )
    shards = set(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    tensors: dict[str, TensorSource] = {}
    for shard in sorted(shards):
        tensors |= stored_tensors(directory / shard)
    return Source(directory, config, tensors)
