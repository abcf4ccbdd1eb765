"""python -m tests.planning.video_tokens: what the video processors of transformers make of some videos.

They need torchvision. What they said is kept in video_tokens.json, so that the planner is held to it without.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.errors import InvalidCalibration
from tests.models_video import SETTINGS, make_video_model
from tests.rows import video_row

RECORDED = Path(__file__).with_suffix(".json")
CLIPS = ((1, (84, 84), None), (2, (84, 84), 2.0), (5, (120, 60), 1.5), (8, (30, 200), None), (7, (640, 360), 0.5))
"""Frames, their size, frames a second."""


def rows() -> Iterator[tuple[dict[str, Any], int, tuple[int, int], float | None]]:
    for frames, size, fps in CLIPS:
        yield video_row(0, frames=frames, size=size, fps=fps), frames, size, fps


def main() -> None:
    found: dict[str, list[list[int] | None]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for family in SETTINGS:
            directory = make_video_model(family, Path(scratch) / family)
            collate = open_collator(directory, AutoConfig.from_pretrained(directory))
            found[family] = []
            for row, *_ in rows():
                try:
                    sample = collate(parse_row(1, row, directory))
                    found[family].append([sample.tokens, int(sample.vision.sum())])
                except InvalidCalibration as error:
                    print(family, error)
                    found[family].append(None)
    RECORDED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
