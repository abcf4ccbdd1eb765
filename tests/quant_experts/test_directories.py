"""Of every directory in ``tests.directories``, the checkpoint is the model that stock transformers loads from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.model.blueprint import open_blueprint
from quant_experts.planning.headers import ModelHeaders
from quant_experts.planning.local import read_local
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.shapes import shapes_of
from quant_experts.planning.sizes import size_of
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec
from tests.directories import CASES
from tests.models import VISION_FAMILIES, make_model
from tests.rows import image_row, text_row, write_rows

ALMOST_LOSSLESS = QuantizationSpec.preset("rtn", scheme="W8A16", samples=4, group_size=32)
TOLERANCE = 0.03
"""Of the logits, relative. Eight bits lose half a percent here; another head, or one random layer, more than half."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    kinds = {(family, tied) for family, tied, _ in CASES.values()}
    base = tmp_path_factory.mktemp("sources")
    return {(family, tied): make_model(family, base / f"{family}-{tied}", tied=tied) for family, tied in sorted(kinds)}


def logits(directory: Path, inputs: dict[str, Tensor], *, vision: bool) -> tuple[Tensor, Any]:
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model, loading = kind.from_pretrained(directory, output_loading_info=True)
    assert not loading["missing_keys"]
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits.float(), model


@pytest.mark.parametrize("case", CASES)
def test_the_checkpoint_is_the_model_that_transformers_loads(
    case: str, sources: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    family, tied, happened = CASES[case]
    vision = family in VISION_FAMILIES
    source = Path(shutil.copytree(sources[family, tied], tmp_path / "source"))
    happened(source)
    row = image_row if vision else text_row
    rows = write_rows(tmp_path / "rows.jsonl", [row(i) for i in range(5)])
    report = quantize(
        model=source, calibration=rows, output=tmp_path / "out", spec=ALMOST_LOSSLESS, work=tmp_path / "work"
    )

    blueprint = open_blueprint(source, device=torch.device("cpu"))
    inputs = open_collator(source, blueprint.model.config, dtype=blueprint.dtype)(parse_row(1, row(9), tmp_path)).inputs
    expected, stock = logits(source, inputs, vision=vision)
    found, ours = logits(tmp_path / "out", inputs, vision=vision)
    assert float((found - expected).norm() / expected.norm()) < TOLERANCE
    assert ours.dtype == stock.dtype
    is_tied = [model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (stock, ours)]
    assert is_tied[0] == is_tied[1]
    if not is_tied[0]:  # engines that trust config.json would leave the head out
        assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert planned_bytes(read_local(source)) == report.size.bytes_after
    assert not any((tmp_path / "out").glob("*adapter*"))


def planned_bytes(headers: ModelHeaders) -> int:
    spec = ALMOST_LOSSLESS.model_dump()
    shapes = shapes_of(headers, vision="keep")
    size = size_of(shapes, Recipe.of(**spec))
    assert size.is_exact
    return size.bytes_after_most
