"""Read what a checkpoint holds from its configuration, its report and the headers of its shards, without its
tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_experts.checkpoint.layout import bits_of
from quant_experts.checkpoint.shards import TensorSource, stored_tensors
from quant_experts.checkpoint.write import REPORT
from quant_experts.errors import InvalidCheckpoint, InvalidModel
from quant_experts.forward.modeling_quant_experts import QUANT_METHOD, each_member
from quant_experts.model.manifest_record import check_version
from quant_experts.planning.headers import INDEX
from quant_experts.report.data import QualityReport


@dataclass(frozen=True)
class GroupContents:
    """One input group. ``weights``: number of quantized weights; ``base_bits``, ``effective_bits``: per weight."""

    name: str
    layers: tuple[str, ...]
    weights: int
    weight_bits: int
    activation_bits: int
    group_size: int
    shared_rank: int
    routed_rank: int
    experts: int
    base_bits: float
    effective_bits: float


@dataclass(frozen=True)
class Contents:
    """A checkpoint in numbers. ``report``: of the run that made it, None when the file is not there."""

    directory: Path
    architecture: str
    quantization: dict[str, Any]
    groups: tuple[GroupContents, ...]
    tensors: int
    bytes: int
    shards: int
    report: QualityReport | None

    @property
    def weights(self) -> int:
        return sum(group.weights for group in self.groups)

    @property
    def effective_bits(self) -> float:
        return sum(group.effective_bits * group.weights for group in self.groups) / self.weights

    @property
    def base_bits(self) -> float:
        return sum(group.base_bits * group.weights for group in self.groups) / self.weights


def read_contents(directory: Path) -> Contents:
    """Raises InvalidCheckpoint when the directory is not a Quant Experts checkpoint or lacks tensors that it names."""
    config = _json(directory / "config.json")
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
        raise InvalidCheckpoint(f"{directory}: config.json does not say quant_method {QUANT_METHOD!r}")
    if isinstance(quantization.get("manifest"), dict):
        check_version(quantization["manifest"])
    weight_map = _weight_map(directory)
    tensors: dict[str, TensorSource] = {}
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        try:
            tensors |= stored_tensors(directory / shard)
        except (OSError, InvalidModel) as error:
            raise InvalidCheckpoint(f"{directory}: {error}") from error
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise InvalidCheckpoint(f"{directory}: {len(missing)} tensors are missing, the first is {missing[0]}")
    report = directory / REPORT
    try:
        modules = _by_module(tensors)
        groups = tuple(_group(entry, modules) for entry in each_member(quantization["groups"]))
        if not groups:
            raise ValueError("no group is listed")
        architecture = ", ".join(config.get("architectures") or ["unknown"])
        quality = QualityReport.model_validate_json(report.read_bytes()) if report.is_file() else None
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise InvalidCheckpoint(
            f"{directory}: config, report and tensors do not fit together: {type(error).__name__} {error}"
        ) from error
    return Contents(
        directory=directory,
        architecture=architecture,
        quantization=quantization,
        groups=groups,
        tensors=len(tensors),
        bytes=sum(tensor.bytes for tensor in tensors.values()),
        shards=len(shards),
        report=quality,
    )


def _by_module(tensors: dict[str, TensorSource]) -> dict[str, dict[str, TensorSource]]:
    modules: dict[str, dict[str, TensorSource]] = {}
    for name, tensor in tensors.items():
        modules.setdefault(name.rpartition(".")[0], {})[name] = tensor
    return modules


def _group(entry: dict[str, Any], modules: dict[str, dict[str, TensorSource]]) -> GroupContents:
    parent, layers = entry["parent"], tuple(entry["layers"])
    scales = [modules[f"{parent}.{layer}"][f"{parent}.{layer}.weight_scale"] for layer in layers]
    weights = sum(scale.shape[0] * scale.shape[1] * int(entry["group_size"]) for scale in scales)
    own = [modules.get(f"{parent}.{name}", {}) for name in (*layers, f"{entry['label']}_input_group")]
    bits, base = bits_of({name: tensor.bytes for each in own for name, tensor in each.items()})
    return GroupContents(
        name=entry["name"],
        layers=layers,
        weights=weights,
        weight_bits=entry["weight_bits"],
        activation_bits=entry["activation_bits"],
        group_size=entry["group_size"],
        shared_rank=entry["shared_rank"],
        routed_rank=entry["routed_rank"],
        experts=entry["experts"],
        base_bits=base / weights,
        effective_bits=bits / weights,
    )


def _weight_map(directory: Path) -> dict[str, str]:
    """Tensor → shard."""
    weight_map = _json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InvalidCheckpoint(f"{directory}: {INDEX} has no weight_map that names a shard for each tensor")
    return weight_map


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{path.parent} is not a Quant Experts checkpoint: {path.name}: {error}") from error
    if not isinstance(content, dict):
        raise InvalidCheckpoint(f"{path} is not a JSON object")
    return content
