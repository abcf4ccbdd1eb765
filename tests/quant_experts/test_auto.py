"""Scheme auto: what it tries, what it takes, and that it says how close it came."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant_experts.errors import InvalidSpec, Stopped
from quant_experts.progress import Advanced, Event, PhaseStarted, Warned
from quant_experts.report.data import AutoSearch, FrontierPoint, ModelQuality, QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.search.choice import best_within_bytes, is_richer, smallest_within_kl, worth_trying
from quant_experts.search.grid import SCHEMES, Point, grid
from quant_experts.search.search import few_inputs, missed_target
from quant_experts.spec.methods import choices_of
from quant_experts.spec.specification import PRESETS, QuantizationSpec
from tests.models import make_model
from tests.quant_experts.measuring import measuring
from tests.quant_experts.test_mixed_precision import TWELVE, flat
from tests.rows import text_row, write_rows

SENSITIVITY = {plan.name: 1.0 + number for number, plan in enumerate(flat(TWELVE))}


def points_of(method: str, version: int = 2, **target: Any) -> list[Point]:
    target = target or {"max_kl": 1.0}
    spec = QuantizationSpec.preset(method, method_version=version, scheme="auto", target=target, group_size=32)
    return grid(spec, TWELVE, SENSITIVITY, unquantized_bytes=10_000, dtype=torch.bfloat16)


POINTS = points_of("qe")
COSTS = st.tuples(*(st.floats(0.1, 5) for _ in range(3)))


def falling(costs: tuple[float, float, float]) -> dict[str, float]:
    """A KL that falls with richness in each respect, by label."""
    return {
        point.label: 2 ** -sum(cost * rich for cost, rich in zip(costs, point.richness, strict=True))
        for point in POINTS
    }


# --- The grid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("method", PRESETS)
def test_each_method_has_a_grid_of_specs_that_are_no_search(method: str, version: int) -> None:
    points = points_of(method, version)
    assert [point.bytes for point in points] == sorted(point.bytes for point in points)
    assert len({point.label for point in points}) == len(points)
    assert {point.spec.scheme for point in points} == set(SCHEMES)
    for point in points:
        assert point.spec.target is None
        assert (point.spec.smoothing, point.spec.rounding) == tuple(
            choices_of(method, version)[slot] for slot in ("smoothing", "rounding")
        )
        assert point.effective_bits > point.spec.bits.weight_bits


def test_labels_are_for_people_and_bytes_grow_with_what_is_added() -> None:
    by_label = {point.label: point for point in POINTS}
    plain, experts = by_label["W4A8 · no adapters"], by_label["W4A8 · 8 experts of rank 16"]
    raised = by_label["W4A8 · 8 experts of rank 16 · 10 % at 8 bits"]
    assert plain.bytes < experts.bytes < raised.bytes
    assert raised.options["sensitive"]["groups"] == list(raised.weight_bits)
    assert "W8A8 · no adapters · 10 % at 8 bits" not in by_label
    assert len(POINTS) == 3 * 3 * 2 + 3


def test_budgets_fill_a_size_and_raise_the_most_sensitive_groups_first() -> None:
    plain = {point.label: point for point in points_of("balanced", 4)}["W4A8 · no adapters"]
    size = plain.bytes + 40_000
    found = [point for point in points_of("balanced", 4, max_bytes=size) if "budget" in point.options]
    assert {point.spec.scheme for point in found} == {"W3A8", "W4A8"}  # the two largest that fit
    for point in found:
        assert size - 4_000 < point.bytes <= size
        assert point.spec.budget is not None
        raised = sorted(SENSITIVITY, key=lambda name: point.weight_bits.get(name, 0))
        assert SENSITIVITY[raised[-1]] > SENSITIVITY[raised[0]]


def test_a_budget_that_all_groups_fit_into_is_no_point_of_its_own() -> None:
    assert not [point for point in points_of("balanced", 4, max_bytes=1 << 40) if "budget" in point.options]


def test_budgets_of_a_search_for_a_kl_are_a_quarter_of_a_bit_apart() -> None:
    budgets = sorted(
        point.options["budget"]["bits_per_weight"]
        for point in points_of("gptq", 4)
        if point.spec.scheme == "W6A8" and "budget" in point.options
    )
    assert budgets == [6.75, 7.0, 7.25, 7.5, 7.75, 8.0]


@pytest.mark.parametrize(("method", "added"), [("qe", "experts"), ("aser", "adapter")])
def test_the_third_version_adds_what_fits(method: str, added: str) -> None:
    by_label = {point.label: point for point in points_of(method, 3)}
    assert len(by_label) == 3 * 2 * 2 + 2
    for bits in (3, 4, 6, 8):
        plain, more = by_label[f"W{bits}A8 · no adapters"], by_label[f"W{bits}A8 · {added}"]
        assert plain.richness < more.richness
        assert plain.bytes <= more.bytes


# --- What is tried, and what is taken ------------------------------------------------------------------------------


@given(COSTS, st.floats(0, 1))
def test_the_best_point_that_fits_is_found(costs: tuple[float, float, float], share: float) -> None:
    kl = falling(costs)
    limit = round(POINTS[0].bytes + share * (POINTS[-1].bytes - POINTS[0].bytes))
    chosen = best_within_bytes(POINTS, limit, lambda point: kl[point.label])
    fitting = [point for point in POINTS if point.bytes <= limit]
    assert kl[chosen.label] == min(kl[point.label] for point in fitting)
    assert chosen.bytes <= limit
    assert len(worth_trying(POINTS, limit)) <= 8


@given(COSTS, st.floats(0, 1))
def test_the_smallest_point_within_a_kl_is_found_without_trying_all(
    costs: tuple[float, float, float], share: float
) -> None:
    kl = falling(costs)
    order = sorted(kl.values())
    limit = order[round(share * (len(order) - 1))]
    tried: set[str] = set()

    def kl_of(point: Point) -> float:
        tried.add(point.label)
        return kl[point.label]

    chosen = smallest_within_kl(POINTS, limit, kl_of)
    assert chosen.bytes == min(point.bytes for point in POINTS if kl[point.label] <= limit)
    assert len(tried) <= 10


def test_richer_is_richer_in_each_respect() -> None:
    by_label = {point.label: point for point in POINTS}
    plain, experts = by_label["W8A8 · no adapters"], by_label["W4A8 · 8 experts of rank 32"]
    assert not is_richer(plain, experts)
    assert not is_richer(experts, plain)
    assert is_richer(plain, by_label["W6A8 · no adapters · 10 % at 8 bits"])


def test_a_smaller_point_that_is_richer_in_one_respect_is_tried_too() -> None:
    of_scheme = [point for point in POINTS if point.spec.scheme == "W4A8"]
    larger_experts = next(point for point in of_scheme if point.label == "W4A8 · 8 experts of rank 32")
    labels = [point.label for point in worth_trying(of_scheme, larger_experts.bytes)]
    assert labels == ["W4A8 · 8 experts of rank 16 · 10 % at 8 bits", larger_experts.label]


def test_a_target_out_of_reach_says_how_close_it_came() -> None:
    smallest, richest = POINTS[0], max(POINTS, key=lambda point: point.richness)
    with pytest.raises(InvalidSpec, match=rf"max_bytes 9,000 .* {smallest.label}, takes {smallest.bytes:,} bytes") as e:
        best_within_bytes(POINTS, 9000, lambda point: 1 / 0)  # nothing is tried
    assert e.value.code == "invalid_spec"
    with pytest.raises(
        InvalidSpec, match=rf"max_kl 0\.001 .* {richest.label}, has a KL of 0\.25 nats .* {richest.bytes:,}"
    ):
        smallest_within_kl(POINTS, 0.001, lambda point: 0.25)


def test_a_finished_model_that_misses_the_target_is_warned_about() -> None:
    point = FrontierPoint(label="W4A8", options={}, bytes=1, effective_bits=4.0, kl=0.009, chosen=True)
    found = AutoSearch(target={"max_kl": 0.01}, points=[point], rows=16, seconds=1.0)
    quality = ModelQuality(rows=2, tokens=9, kl=0.02, top1_agreement=1, perplexity_full=2, perplexity_quantized=2)
    assert missed_target(found, quality.model_copy(update={"kl": 0.01})) == []
    assert "KL of 0.02, above the target of 0.01; the search saw 0.009" in missed_target(found, quality)[0]
    assert missed_target(None, quality) == []


def test_a_search_sees_few_rows_and_the_held_out_ones(tmp_path: Path) -> None:
    of = measuring(tmp_path, "llama", rows=[text_row(i) for i in range(40)])
    few = few_inputs(of.inputs, 0)
    assert (len(few.fit), few.held_out) == (16, of.inputs.held_out)
    assert few == few_inputs(of.inputs, 0)
    assert few.fit != few_inputs(of.inputs, 1).fit


def test_a_search_sees_rows_that_the_first_stack_is_called_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = measuring(tmp_path, "llama", rows=[text_row(i) for i in range(40)]).inputs
    called = (inputs.held_out[-1].index, inputs.fit[-1].index)
    rows = tuple(row if row.index in called else replace(row, tree=None) for row in inputs.rows)
    monkeypatch.setattr("quant_experts.search.search.HELD_OUT_ROWS", 2)
    for seed in range(3):
        few = few_inputs(replace(inputs, rows=rows), seed)
        assert tuple(row.index for row in few.running.rows) == called
        assert (len(few.held_out), len(few.fit)) == (2, 16)


# --- Whole runs ----------------------------------------------------------------------------------------------------


class Subject:
    def __init__(self, directory: Path) -> None:
        self.model = make_model("llama", directory / "model", blocks=2)
        self.rows = write_rows(directory / "rows.jsonl", [text_row(i) for i in range(10)])

    def run(self, directory: Path, method: str, target: dict[str, float], **more: Any) -> QualityReport:
        spec = QuantizationSpec.preset(
            method, scheme="auto", target=target, samples=10, group_size=32, reservoir=256, important_channels=8
        )
        return quantize(
            model=self.model,
            calibration=self.rows,
            output=directory / "out",
            work=directory / "work",
            spec=spec,
            **more,
        )


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("auto"))


@pytest.mark.slow
def test_a_size_is_kept_and_the_whole_run_goes_on_with_what_was_found(subject: Subject, tmp_path: Path) -> None:
    limit = 640_000
    report = subject.run(tmp_path, "qe", {"max_bytes": limit})
    found = report.auto
    assert found is not None
    chosen = next(point for point in found.points if point.chosen)
    assert found.target == {"max_bytes": limit}
    assert chosen.kl == min(point.kl for point in found.points)
    assert all(point.bytes <= limit for point in found.points)
    assert report.size.bytes_after <= chosen.bytes
    assert report.scheme == chosen.options["scheme"]
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert recipe["spec"]["scheme"] == report.scheme
    assert recipe["spec"]["target"] is None
    assert recipe["auto"] == found.model_dump(mode="json")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"]["scheme"] == report.scheme
    assert not (tmp_path / "work/auto").exists()


def test_a_stopped_search_goes_on_and_ends_as_an_undisturbed_one(subject: Subject, tmp_path: Path) -> None:
    def attempt(directory: Path, stop_at: int | None) -> tuple[dict[str, Any], int]:
        """Up to fitting, or up to so many finished blocks of trials; the record, and how many were announced."""
        stop = threading.Event()
        blocks = 0

        def on_event(event: Event) -> None:
            nonlocal blocks
            # Trials count blocks of several points; calibration and sensitivity end below.
            if isinstance(event, Advanced) and event.total not in (10, 3):
                blocks += 1
                assert event.done <= event.total
            if blocks == stop_at or (isinstance(event, PhaseStarted) and event.phase == "fitting"):
                stop.set()

        with pytest.raises(Stopped):
            subject.run(directory, "smoothquant", {"max_kl": 0.0005}, on_event=on_event, should_stop=stop.is_set)
        path = directory / "work/auto.json"
        return json.loads(path.read_text())["content"]["kl"] if path.is_file() else {}, blocks

    undisturbed, all_blocks = attempt(tmp_path / "whole", None)
    assert len(undisturbed) > 2
    before, _ = attempt(tmp_path / "stopped", 3)
    assert list(before) == list(undisturbed)[:1]  # the second point was under way
    assert len(list((tmp_path / "stopped/work/auto").iterdir())) == 1
    after, blocks = attempt(tmp_path / "stopped", None)
    assert after == undisturbed
    # The two blocks of the first point were not walked again; those of the second are told again, one of them resumed.
    assert blocks == all_blocks - 2


def test_an_impossible_size_ends_the_run_before_a_single_fit(subject: Subject, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(InvalidSpec, match=r"max_bytes 1,000 cannot be met: .* takes \d{3},\d{3} bytes"):
        subject.run(tmp_path, "qe", {"max_bytes": 1000}, on_event=events.append)
    assert not (tmp_path / "work/auto.json").exists()
    assert not (tmp_path / "out").exists()
    assert not any(isinstance(event, Warned) and "auto" in event.message for event in events)
