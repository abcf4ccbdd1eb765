"""The baseline beside every method is the model that the method ``rtn`` would have made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quant_experts.calibration.captured_inputs import read_captured_inputs
from quant_experts.report.data import GroupReport, QualityReport
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.resume_files import HiddenStates
from tests.models import make_model
from tests.quant_experts.test_pipeline import OPTIONS, run
from tests.rows import image_row, write_rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, QualityReport]]:
    """The same model and rows by two methods: name → (work directory, report)."""
    directory = tmp_path_factory.mktemp("baseline")
    model = make_model("qwen2_vl", directory / "model", hidden=64)
    rows = write_rows(directory / "rows.jsonl", [image_row(i) for i in range(6)])
    found = {}
    for method in ("qe", "rtn"):
        grid = {"weight_grid": "max"} if method == "rtn" else {}
        spec = QuantizationSpec.preset(method, **OPTIONS, **grid)
        found[method] = (directory / method / "work", run(directory / method, model=model, rows=rows, spec=spec))
    return found


def _groups(report: QualityReport) -> list[GroupReport]:
    return [group for block in report.blocks for group in block.groups]


def test_the_baseline_stream_is_bit_for_bit_that_of_a_model_rounded_to_nearest(
    runs: dict[str, tuple[Path, QualityReport]],
) -> None:
    states = []
    for method, stream in (("qe", "baseline"), ("rtn", "quantized")):
        work = runs[method][0]
        inputs = read_captured_inputs(work, json.loads((work / "calls.json").read_text())["fingerprint"])
        assert inputs is not None
        states.append([HiddenStates(work, inputs, 2).read(stream, row) for row in inputs.held_out])
    assert len(states[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_its_quality_is_that_of_the_method_rtn(runs: dict[str, tuple[Path, QualityReport]]) -> None:
    report, rounded = runs["qe"][1], runs["rtn"][1]
    assert report.baseline == rounded.quality
    assert rounded.baseline == rounded.quality
    assert report.quality.kl < rounded.quality.kl


def test_each_group_knows_what_rounding_alone_would_have_lost_on_its_tokens(
    runs: dict[str, tuple[Path, QualityReport]],
) -> None:
    fitted, rounded = _groups(runs["qe"][1]), _groups(runs["rtn"][1])
    for mine, theirs in zip(fitted[:3], rounded[:3], strict=True):
        # The inputs of the first block are the embeddings for both methods, and its weights are not yet quantized.
        assert mine.error_rtn == pytest.approx(theirs.error.routed, rel=1e-9)
    assert all(group.error_rtn == group.error.routed for group in rounded)
    assert all(group.error_rtn > group.error.routed for group in fitted if group.error_rtn is not None)


def test_the_time_of_the_baseline_is_told_apart(runs: dict[str, tuple[Path, QualityReport]]) -> None:
    assert all(block.seconds_by_phase["baseline"] >= 0 for block in runs["qe"][1].blocks)
    assert not any("baseline" in block.seconds_by_phase for block in runs["rtn"][1].blocks)
