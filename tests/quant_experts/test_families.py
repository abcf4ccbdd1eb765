"""Every family through the whole pipeline: quantized, verified by a process without the package, loaded, generating."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

import quant_experts  # noqa: F401 -- registers the method
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec
from tests.models import FAMILIES, VISION_FAMILIES, make_model
from tests.planned import check_planned_size
from tests.rows import image_row, text_row, write_rows

SPEC = QuantizationSpec.preset(
    "qe", samples=4, experts=2, shared_rank=4, routed_rank=4, important_channels=8, group_size=32, reservoir=128
)
ELSEWHERE = ("qwen2_vl", "qwen3_vl", "llama")
"""Families whose whole runs other tests look at closely."""


def quantized(family: str, directory: Path, **model: Any) -> Path:
    """The checkpoint of a tiny model. The pipeline has verified it in a process that has nothing but transformers."""
    source = make_model(family, directory / "model", **model)
    make_row = image_row if family in VISION_FAMILIES else text_row
    rows = write_rows(directory / "rows.jsonl", [make_row(i) for i in range(5)])
    report = quantize(
        model=source, calibration=rows, output=directory / "out", spec=SPEC, work=directory / "work", device="cpu"
    )
    check_planned_size(source, SPEC, report)
    assert not any("belong to no module" in warning for warning in report.warnings)
    assert report.quality is not None
    assert report.quality.kl < 0.05
    assert (report.tokens_vision > 0) is (family in VISION_FAMILIES)
    return directory / "out"


def loads_and_generates(checkpoint: Path, row: dict[str, Any]) -> None:
    """With the package, by the class that the configuration names; inputs by the processor that the checkpoint has."""
    config = json.loads((checkpoint / "config.json").read_text())
    kind = getattr(transformers, next(iter(config["auto_map"])))
    model, loading = kind.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(loading.values())
    assert type(model).__name__ == config["architectures"][0]
    sample = open_collator(checkpoint, AutoConfig.from_pretrained(checkpoint))(parse_row(1, row, checkpoint))
    with torch.no_grad():
        logits = model(**sample.inputs, use_cache=False).logits
        new = model.generate(**sample.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert torch.isfinite(logits).all()
    assert new.shape[1] == sample.tokens + 4


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ELSEWHERE])
def test_a_family_goes_through_the_whole_pipeline_loads_back_and_generates(family: str, tmp_path: Path) -> None:
    checkpoint = quantized(family, tmp_path)
    loads_and_generates(checkpoint, image_row(7) if family in VISION_FAMILIES else text_row(7))
