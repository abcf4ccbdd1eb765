"""The formats to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quant_experts.checkpoint.shards import Readable
from quant_experts.export.compressed_tensors import compressed_config, compressed_losses, compressed_tensors
from quant_experts.export.dequantized import dequantized_losses, dequantized_tensors
from quant_experts.export.source import Source

Rename = Callable[[str], str]
"""Name of a tensor or path of a module in memory → the one in the exported files."""


@dataclass(frozen=True)
class Format:
    """``losses``: what the export has not that the checkpoint has; raises InvalidSpec where it is not possible.
    ``tensors``: of the quantized layers. ``quantization_config``: None for a model that is not quantized. ``needs``:
    the package beside transformers that loads it. ``opens_with``: commands that do."""

    summary: str
    losses: Callable[[Source], Iterator[str]]
    tensors: Callable[[Source], Mapping[str, Readable]]
    quantization_config: Callable[[Source, Rename], dict[str, Any] | None]
    opens_with: str
    needs: str | None = None


FORMATS: Mapping[str, Format] = {
    "dequantized": Format(
        "weights in the model's own dtype, with smoothing and shared experts folded in; anything loads it",
        dequantized_losses,
        dequantized_tensors,
        lambda source, renamed: None,
        "any program that loads the original model",
    ),
    "compressed-tensors": Format(
        "the same packed integers for vLLM, SGLang and transformers; for methods without smoothing and experts",
        compressed_losses,
        compressed_tensors,
        compressed_config,
        "vllm serve DIRECTORY; transformers with the package compressed-tensors",
        needs="compressed_tensors",
    ),
}
