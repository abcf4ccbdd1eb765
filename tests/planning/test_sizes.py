"""Bytes are exact: what was planned from headers is what the walk has written, block by block."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from quant_experts.errors import Stopped
from quant_experts.model.tensor_file import TensorFile
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.shapes import Shapes, shapes_of
from quant_experts.planning.sizes import size_of
from quant_experts.progress import Event, PhaseStarted
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.resume_files import block_file
from tests.models import VISION_FAMILIES, make_model
from tests.models_speech import audio_row
from tests.planned import planned_size
from tests.rows import image_row, text_row, write_rows

FEW = {"samples": 4, "reservoir": 128, "experts": 3, "important_channels": 8, "shared_rank": 5, "routed_rank": 3}
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("llama", "qe", "W4A6", {"group_size": 32}),
    ("llama", "qe", "W3A16", {"adapter_dtype": "int8"}),
    ("phi3", "qe-gptq", "W5A8", {"group_size": "channel", "experts": 1}),
    ("opt", "aser", "W2A4", {"shared_rank": 500}),
    ("gemma2", "qe-paper", "W7A7", {"shared_rank": 0, "experts": 20, "important_channels": 64}),
    ("qwen2", "awq", "W8A8", {}),
    ("internvl", "lqer", "W4A8", {"adapter_dtype": "int8"}),
    ("qwen3", "qe", "W4A6", {"sensitive": {"groups": ["layers.1.mlp.down"], "weight_bits": 8}}),
    ("mistral", "gptq", "W4A16", {}),
    ("whisper", "aser", "W4A8", {}),
    ("qwen2_vl", "qe", "W4A8", {"vision": "quantize"}),
    ("qwen3_vl", "aser", "W4A8", {"vision": "quantize", "sensitive": {"groups": ["merger.fc2"], "weight_bits": 8}}),
    ("internvl", "gptq", "W3A8", {"vision": "quantize"}),
]


@pytest.mark.parametrize(("family", "method", "scheme", "options"), CASES, ids=lambda value: str(value)[:24])
def test_the_bytes_of_every_block_are_those_that_were_planned(
    family: str, method: str, scheme: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(family, tmp_path / "model")
    make_row = audio_row if family == "whisper" else image_row if family in VISION_FAMILIES else text_row
    rows = write_rows(tmp_path / "rows.jsonl", [make_row(i) for i in range(5)])
    spec = QuantizationSpec.preset(method, scheme=scheme, **{**FEW, **options})
    walked = threading.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "evaluating":
            walked.set()

    work = tmp_path / "work"
    with pytest.raises(Stopped, match="before packing"):
        quantize(
            model=model,
            calibration=rows,
            output=tmp_path / "out",
            spec=spec,
            work=work,
            on_event=on_event,
            should_stop=walked.is_set,
        )
    size = planned_size(model, spec)
    written = [TensorFile(work / block_file(block)).entries.values() for block in range(len(size.blocks_after))]
    assert size.is_exact
    assert size.blocks_after == tuple(sum(entry.bytes for entry in entries) for entries in written)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    from quant_experts.planning.local import read_local

    return shapes_of(read_local(make_model("llama", tmp_path_factory.mktemp("llama"))))


def test_a_search_is_planned_between_the_fewest_and_the_most_bits(shapes: Shapes) -> None:
    searched = size_of(shapes, Recipe.of("qe", scheme="auto", target={"max_kl": 0.1}))
    two, eight = (size_of(shapes, Recipe.of("qe", scheme=scheme)) for scheme in ("W2A8", "W8A8"))
    assert not searched.is_exact
    assert searched.bytes_after_least == two.bytes_after_most
    assert searched.bytes_after_most == eight.bytes_after_most


@pytest.mark.parametrize("sensitive", [{"share": 0.25, "weight_bits": 8}, {"share": 1.0, "weight_bits": 8}])
def test_a_share_of_sensitive_weights_is_planned_up_to_that_share(shapes: Shapes, sensitive: dict[str, Any]) -> None:
    plain, raised = (size_of(shapes, Recipe.of("rtn", scheme=scheme)) for scheme in ("W4A8", "W8A8"))
    size = size_of(shapes, Recipe.of("rtn", scheme="W4A8", sensitive=sensitive))
    assert size.bytes_after_least == plain.bytes_after_most
    between = plain.bits_most + sensitive["share"] * (raised.bits_most - plain.bits_most)
    assert size.bits_most == pytest.approx(between, abs=0.01)


def test_a_budget_bounds_the_bits(shapes: Shapes) -> None:
    size = size_of(shapes, Recipe.of("rtn", scheme="W4A8", budget={"bits_per_weight": 5.5}))
    assert 5.4 < size.bits_most <= 5.5
