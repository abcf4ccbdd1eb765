"""The configuration files of a checkpoint: the model's and the processor's own, and what their loaders need."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import quant_experts
from quant_experts.calibration.processor import has_processor, patches_of
from quant_experts.checkpoint.shards import TensorSource
from quant_experts.errors import InvalidModel
from quant_experts.forward.modeling_quant_experts import (
    ACTIVATION_KEYS,
    FORMAT,
    MIXTURE_FORMAT,
    QUANT_METHOD,
    ROTATED_FORMAT,
)
from quant_experts.spec.specification import QuantizationSpec

MODULE = "modeling_quant_experts"
PROCESSOR, PROCESSOR_MODULE = "processor_config.json", "processing_quant_experts"
BLOCK = re.compile(r"(.*?\.\d+)(\.|$)")
"""The block of a stack that a parent is in, or is; a merger behind the blocks is in none."""


def loadable_config(
    source: Path,
    *,
    architecture: str,
    spec: QuantizationSpec,
    groups: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, TensorSource],
    manifest: Mapping[str, Any] | None = None,
    untied: bool = False,
) -> str:
    """The text of config.json. ``untied``: the output head is not the embeddings, whatever the source's says.

    Raises InvalidModel when the source is quantized already or its configuration cannot be read.
    """
    path = source / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path.name} cannot be read: {error}") from error
    if config.get("quantization_config"):
        raise InvalidModel(f"{path.name}: the model is quantized already; start from its full-precision version")
    config["architectures"] = [architecture]
    if not config.get("dtype") and not config.get("torch_dtype"):
        # Without it transformers takes the dtype of the first tensor it meets, which may be a float32 scaling vector.
        config["dtype"] = _dtype_name(tensors.values())
    if untied:
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                part["tie_word_embeddings"] = False
    config["auto_map"] = auto_map(architecture)
    config["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "format": format_of(groups),
        "scheme": spec.scheme,
        "method": spec.method,
        "smoothing": spec.smoothing,
        "rounding": spec.rounding,
        "reconstruction": spec.reconstruction,
        "packing": "compressed-tensors pack-quantized",
        "library_version": quant_experts.__version__,
        "ignored": ignored_modules(tensors, groups),
        **({} if manifest is None else {"manifest": dict(manifest)}),
        "groups": [dict(group) for group in groups],
    }
    return json.dumps(config, indent=2) + "\n"


def format_of(groups: Iterable[Mapping[str, Any]]) -> int:
    """The lowest format whose loaders understand all that the groups say."""
    names = {key for group in groups for key in group}
    if names & set(ACTIVATION_KEYS):
        return ROTATED_FORMAT
    return MIXTURE_FORMAT if "members" in names else FORMAT


def processor_files(source: Path) -> dict[str, str]:
    """The processor's configuration and its loader, name → text; empty for a model that takes no images.

    The configuration is the source's, with ``auto_map`` to the loader and what LLaVA's processor needs to count tokens.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    kind = PROCESSOR_MAPPING.get(type(config), None) if hasattr(config, "vision_config") else None
    if kind is None or not has_processor(source):
        return {}
    path = source / PROCESSOR
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if document.get("patch_size") is None:
        document |= patches_of(config)
    document["processor_class"] = kind.__name__
    document["auto_map"] = {**document.get("auto_map", {}), "AutoProcessor": f"{PROCESSOR_MODULE}.{kind.__name__}"}
    loader = Path(__file__).parent.parent / "forward" / f"{PROCESSOR_MODULE}.py"
    return {PROCESSOR: json.dumps(document, indent=2) + "\n", loader.name: loader.read_text(encoding="utf-8")}


def auto_map(architecture: str) -> dict[str, str]:
    """Auto class → class in the shipped loader, for every auto class that transformers maps to the architecture."""
    classes = {
        "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
        "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    }
    mapping = {
        auto_class: f"{MODULE}.{architecture}"
        for auto_class, table in classes.items()
        if architecture in dict(getattr(modeling_auto, table, {})).values()
    }
    if not mapping:
        raise InvalidModel(f"transformers maps no auto class to {architecture}, so that nothing could load it")
    return mapping


def ignored_modules(tensors: Iterable[str], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The largest modules with weights of their own and nothing quantized inside, norms of blocks left out."""
    quantized = {f"{group['parent']}.{layer}" for group in groups for layer in group["layers"]}
    parents = {group["parent"] for group in groups}
    blocks = {match[1] if (match := BLOCK.match(parent)) else parent for parent in parents}
    ancestors = {path[:end] for path in quantized for end in _ends(path)}
    names = set()
    for name in tensors:
        module = name.rpartition(".")[0]
        if any(module == block or module.startswith(f"{block}.") for block in blocks):
            continue
        whole = next((module[:end] for end in _ends(module) if module[:end] not in ancestors), module)
        names.add(whole)
    return sorted(names)


def _ends(path: str) -> list[int]:
    """Where each prefix of a dotted path ends, shortest first, the whole path last."""
    return [i for i, character in enumerate(path) if character == "."] + [len(path)]


def _dtype_name(tensors: Iterable[TensorSource]) -> str:
    bytes_by_dtype: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            bytes_by_dtype[str(tensor.dtype).removeprefix("torch.")] += tensor.bytes
    return bytes_by_dtype.most_common(1)[0][0]
