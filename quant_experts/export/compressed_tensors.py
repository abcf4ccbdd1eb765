"""The ``pack-quantized`` format of compressed-tensors, which vLLM, SGLang and transformers load: the same integers and
scales, under another configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from quant_experts.checkpoint.shards import TensorSource
from quant_experts.errors import InvalidSpec
from quant_experts.export.dequantized import activation_losses
from quant_experts.export.source import Source

KERNELS_FOR = (4, 8)
"""Bits of weights for which vLLM has kernels."""


def compressed_losses(source: Source) -> Iterator[str]:
    """Raises InvalidSpec when the format has no place for something that the checkpoint's layers need."""
    for entry in source.groups:
        needs = [word for word, there in _needs(entry).items() if there]
        if needs:
            raise InvalidSpec(
                f"{entry['name']} has {' and '.join(needs)}, which compressed-tensors cannot hold: export it as "
                'dequantized, or quantize the model with the method "gptq" or "fast", which have none'
            )
    yield from activation_losses(source)
    bits = sorted({entry["weight_bits"] for entry in source.groups} - {*KERNELS_FOR})
    if bits:
        yield f"vLLM has no kernels for weights of {' and '.join(map(str, bits))} bits; transformers dequantizes them"


def _needs(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {
        "smoothing": bool(entry["smooth"]) and "rotation" not in entry,
        "a rotation": "rotation" in entry,
        "a shared expert": bool(entry["shared_rank"]),
        "routed experts": bool(entry["experts"]),
    }


def compressed_tensors(source: Source) -> dict[str, TensorSource]:
    """Integers, scales and shapes as they are."""
    ends = ("weight_packed", "weight_scale", "weight_shape")
    names = (f"{path}.{end}" for path, _ in source.layers for end in ends)
    return {name: source.tensors[name] for name in names}


def compressed_config(source: Source, rename: Callable[[str], str]) -> dict[str, Any]:
    """``quantization_config``. ``rename``: path of a module in memory → its path in the exported files.

    transformers looks for the paths of modules in memory and vLLM for those of the files: where they differ both are
    listed.
    """
    kinds: dict[tuple[int, int], list[str]] = {}
    for path, entry in source.layers:
        size = -1 if source.tensors[f"{path}.weight_scale"].shape[1] == 1 else int(entry["group_size"])
        kinds.setdefault((entry["weight_bits"], size), []).append(path)
    most = Counter({kind: len(paths) for kind, paths in kinds.items()}).most_common(1)[0][0]
    groups = {
        f"group_{n}": {
            "targets": ["Linear"] if kind == most else _both(paths, rename),
            "weights": _weights(*kind),
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
        for n, (kind, paths) in enumerate(sorted(kinds.items(), key=lambda item: item[0] != most))
    }
    quantized = {path for path, _ in source.layers}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": _both([path for path in source.linear_layers() if path not in quantized], rename),
    }


def _both(paths: list[str], rename: Callable[[str], str]) -> list[str]:
    return list(dict.fromkeys(name for path in paths for name in (path, rename(path))))


def _weights(bits: int, group_size: int) -> dict[str, Any]:
    """``group_size``: -1 for one scale per row."""
    whole = group_size == -1
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if whole else "group",
        "group_size": None if whole else group_size,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
        "block_structure": None,
    }
