"""Tokens of videos, counted from the number and size of their frames, are those that the processors make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quant_experts.planning.local import read_local_text
from quant_experts.planning.row_tokens import RowCounting
from quant_experts.planning.video_tokens import Clip
from tests.models_video import SETTINGS, make_video_model
from tests.planning.video_tokens import RECORDED, rows


@pytest.mark.parametrize("family", SETTINGS)
def test_tokens_of_a_video_are_those_that_its_processor_made(family: str, tmp_path: Path) -> None:
    files = read_local_text(make_video_model(family, tmp_path))
    with RowCounting(files) as counting:
        for row, frames, size, fps in rows():
            counting.add(row["messages"], [], [Clip(frames, size, fps)])
        counted = [(row.total, row.image) for row in counting.finish().rows]
    recorded = json.loads(RECORDED.read_text())[family]
    assert len(recorded) == len(counted)
    assert [each for each, known in zip(counted, recorded, strict=True) if known] == [tuple(r) for r in recorded if r]
