"""The processor's files of a checkpoint whose model takes images: its configuration and its loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from quant_experts.calibration.processor import patches_of

PROCESSOR = "processor_config.json"
MODULE = "processing_quant_experts"


def processor_files(source: Path) -> dict[str, str]:
    """Name → text. Empty for a model that takes no images.

    The configuration is the source's, with ``auto_map`` to the loader and what LLaVA's processor needs to count tokens.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    kind = PROCESSOR_MAPPING.get(type(config), None) if hasattr(config, "vision_config") else None
    if kind is None:
        return {}
    path = source / PROCESSOR
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stored.get("patch_size") is None:
        stored |= patches_of(config)
    stored["processor_class"] = kind.__name__
    stored["auto_map"] = {**stored.get("auto_map", {}), "AutoProcessor": f"{MODULE}.{kind.__name__}"}
    loader = Path(__file__).parent.parent / "forward" / f"{MODULE}.py"
    return {PROCESSOR: json.dumps(stored, indent=2) + "\n", loader.name: loader.read_text(encoding="utf-8")}
