"""Calibration data that cannot carry a report is named, with its number and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.evaluation.calibration_quality import NO_IMAGE, judge_calibration
from quant_experts.model.tensor_file import TensorFile, write_tensors
from quant_experts.report.data import (
    BlockReport,
    CalibrationQuality,
    ChannelStatistics,
    FrequencyPoint,
    GroupReport,
    StageErrors,
)


def _call(
    index: int, *, held_out: bool = False, tokens: int = 100, vision: int = 60, digest: str | None = None
) -> CapturedRow:
    return CapturedRow(index, index + 1, held_out, tokens, vision, {"dict": {}}, digest or f"row {index}")


GOOD = [*(_call(i, held_out=True) for i in range(8)), *(_call(i) for i in range(8, 108))]


def _judge(
    directory: Path,
    rows: list[CapturedRow],
    *,
    split_half: float | None = 0.97,
    unseen: float | None = 0.001,
    usage: tuple[float, ...] = (0.5, 0.25, 0.25),
    takes_images: bool = True,
) -> CalibrationQuality:
    write_tensors(directory / "calls.safetensors", {"x": (torch.float32, (1,))}, [("x", torch.zeros(1))])
    inputs = CapturedInputs(tuple(rows), {}, 0, TensorFile(directory / "calls.safetensors"), ())
    groups = [
        GroupReport(
            name=name,
            block=0,
            layers=["q"],
            tokens=100,
            error=StageErrors(base=0.1, shared=0.1, routed=0.1),
            sqnr_db=10,
            expert_usage=list(usage),
            smoothing="none",
            effective_bits=4.5,
            channels=ChannelStatistics(
                independent=1,
                dependent=1,
                curve=[FrequencyPoint(rank=1, share=1.0)],
                split_half=agreement,
                unseen_share=unseen,
            ),
        )
        for name, agreement in (("first", split_half), ("second", None if split_half is None else split_half - 0.02))
    ]
    block = BlockReport(block=0, seconds=1.0, seconds_by_phase={}, groups=groups)
    return judge_calibration([block], inputs, widest=64, takes_images=takes_images)


def test_enough_and_varied_rows_are_good_and_need_no_words(tmp_path: Path) -> None:
    found = _judge(tmp_path, GOOD)
    assert (found.verdict, found.reasons) == ("good", [])
    assert found.split_half_mean == pytest.approx(0.96)
    assert (found.split_half_worst, found.split_half_worst_group) == (0.95, "second")
    assert (found.unseen_share_mean, found.unseen_share_worst) == (0.001, 0.001)
    assert (found.idle_experts, found.experts) == (0, 6)


@pytest.mark.parametrize(
    ("rows", "verdict", "sentence"),
    [
        (GOOD[:28], "thin", "only 20 rows were fitted on; give at least 32"),
        (GOOD[:12], "poor", "only 4 rows were fitted on"),
        ([*GOOD[:2], *GOOD[8:]], "thin", "only 2 rows were held out"),
        ([_call(i, held_out=i < 8, tokens=2, vision=1) for i in range(108)], "thin", "200 calibration tokens"),
        ([_call(i, held_out=i < 8, tokens=1, vision=0) for i in range(60)], "poor", "52 calibration tokens"),
        ([_call(i, held_out=i < 8, vision=0) for i in range(108)], "poor", NO_IMAGE),
        (
            [_call(i, held_out=i < 8, vision=1) for i in range(108)],
            "thin",
            "tokens are image tokens",
        ),
        (
            [_call(i, held_out=i < 8, vision=99) for i in range(108)],
            "thin",
            "only 1.0% of the calibration tokens are text",
        ),
        (
            [_call(i, held_out=i < 8, digest="same" if i >= 8 else None) for i in range(108)],
            "poor",
            "all 100 calibration",
        ),
        (
            [_call(i, held_out=i < 8, digest=f"{i % 40}" if i >= 8 else None) for i in range(108)],
            "thin",
            "only 40 of 100",
        ),
        ([*GOOD[:7], _call(7, held_out=True, digest="row 9"), *GOOD[8:]], "thin", "1 of 8 held-out rows are copies"),
    ],
)
def test_rows_that_are_too_few_or_one_sided_are_named(
    rows: list[CapturedRow], verdict: str, sentence: str, tmp_path: Path
) -> None:
    found = _judge(tmp_path, rows)
    assert found.verdict == verdict
    assert any(sentence in reason for reason in found.reasons), found.reasons


@pytest.mark.parametrize(
    ("measured", "verdict", "sentence"),
    [
        ({"split_half": 0.85}, "thin", "correlation of only 0.84 on average (0.83 at second)"),
        ({"split_half": 0.6}, "poor", "correlation of only 0.59"),
        ({"unseen": 0.05}, "thin", "5.0% of the held-out tokens"),
        ({"unseen": 0.5}, "poor", "50.0% of the held-out tokens"),
        ({"usage": (1.0, 0.0)}, "thin", "2 of 4 routed experts were chosen by no held-out token"),
    ],
)
def test_what_was_measured_is_held_against_its_threshold(
    measured: dict[str, float], verdict: str, sentence: str, tmp_path: Path
) -> None:
    found = _judge(tmp_path, GOOD, **measured)  # type: ignore[arg-type]
    assert found.verdict == verdict
    assert len(found.reasons) == 1
    assert sentence in found.reasons[0]


def test_a_text_model_needs_no_images_and_a_method_without_experts_has_none(tmp_path: Path) -> None:
    rows = [_call(i, held_out=i < 8, vision=0) for i in range(108)]
    found = _judge(tmp_path, rows, takes_images=False, usage=(), split_half=None, unseen=None)
    assert (found.verdict, found.experts, found.split_half_mean, found.unseen_share_worst) == ("good", 0, None, None)
