"""Tiny models that take videos: the settings of a video processor, and a chat template that places videos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.models import make_model

SQUARE = {"height": 56, "width": 56}
QWEN = "<|vision_start|><|video_pad|><|vision_end|>"
TEXT = "{% elif part['type'] == 'text' %}"
SETTINGS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl"),
        (
            {
                "video_processor_type": "Qwen2VLVideoProcessor",
                "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
            },
            QWEN,
        ),
    ),
    "qwen3_vl": (
        {
            "video_processor_type": "Qwen3VLVideoProcessor",
            "size": {"shortest_edge": 4 * 64 * 64, "longest_edge": 8 * 96 * 96},
            "patch_size": 16,
        },
        QWEN,
    ),
    "internvl": ({"video_processor_type": "InternVLVideoProcessor", "size": SQUARE}, "<video>\n"),
    "llava_onevision": ({"video_processor_type": "LlavaOnevisionVideoProcessor", "size": SQUARE}, "<video>\n"),
}
"""Family → video_preprocessor_config.json, and what the template writes for a video."""


def make_video_model(family: str, directory: Path) -> Path:
    make_model(family, directory)
    settings, mark = SETTINGS[family]
    (directory / "video_preprocessor_config.json").write_text(json.dumps(settings))
    template = directory / "chat_template.jinja"
    text = template.read_text()
    assert TEXT in text
    template.write_text(text.replace(TEXT, f"{{% elif part['type'] == 'video' %}}{mark}{TEXT}"))
    return directory
