"""Every figure on the page is the report's, and every part appears with its figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from markupsafe import escape

from quant_experts.charts.axes import logarithmic, padded
from quant_experts.checkpoint.card import model_card
from quant_experts.report.charts import numbers
from quant_experts.report.charts.bars import parts
from quant_experts.report.charts.error_chart import error_chart, modality_charts
from quant_experts.report.charts.frequency_chart import frequency_panels
from quant_experts.report.charts.frontier_chart import frontier_chart
from quant_experts.report.charts.sentences import bought, verdict
from quant_experts.report.charts.usage_chart import usage_chart
from quant_experts.report.charts.warning_list import warning_list
from quant_experts.report.data import (
    Acceptance,
    ChannelStatistics,
    FrequencyPoint,
    ModelQuality,
    QualityReport,
    Reaction,
    StageErrors,
)
from quant_experts.report.page import render_report
from quant_experts.spec.specification import QuantizationSpec
from tests.quant_experts.reports import EXPERTS, RECIPE, rich_report

SECTIONS = (
    *("task", "bought", "limits", "warnings", "blocks", "worst", "calibration", "images", "channels", "experts"),
    *("sensitivity", "auto", "size", "recipe"),
)
OPTIONAL = ("evaluation", "baseline", "calibration", "images", "acceptance", "mixed_precision", "auto")
OPTIONAL_OF_A_GROUP: dict[str, Any] = {
    "error_vision": None, "error_text": None, "expert_usage": [], "weight_bits": None, "error_rtn": None,
    "channels": None, "sensitivity": None, "warnings": [],
}  # fmt: skip


class Marked(HTMLParser):
    """Elements that carry a figure: attributes, and the text inside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.figures: list[tuple[dict[str, str], str]] = []
        self.sections: list[str] = []
        self._open: dict[str, str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "section":
            self.sections.append(found["id"])
        elif tag == "data":
            self._open = found
            self.figures.append((found, ""))
        elif "data-value" in found:
            self.figures.append((found, ""))

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.figures[-1] = (self._open, data)
            self._open = None


def at(report: dict[str, Any], path: str) -> Any:
    found: Any = report
    for step in path.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def read(text: str) -> float:
    """The number that a reader takes from ``12.3 %``, ``4.2×10⁻⁶``, ``1.86 GiB`` or ``15.0 dB``."""
    plain = text.replace(",", "").replace("−", "-")
    match = re.fullmatch(r"([-+]?[\d.]+)(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?(?: (%|B|KiB|MiB|GiB|TiB|dB|points))?", plain)
    assert match, text
    power = (match[2] or "⁰").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    unit = {"%": 0.01, "points": 0.01, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}.get(match[3] or "", 1)
    return float(match[1]) * 10.0 ** int(power) * unit


def plain(report: QualityReport) -> QualityReport:
    """The report with nothing in it that a run may leave out."""
    blocks = [
        block.model_copy(update={"groups": [g.model_copy(update=OPTIONAL_OF_A_GROUP) for g in block.groups]})
        for block in report.blocks
    ]
    return report.model_copy(update={"blocks": blocks, "warnings": [], **dict.fromkeys(OPTIONAL)})


def test_every_figure_on_the_page_equals_the_report() -> None:
    report = rich_report()
    content, marked = report.model_dump(mode="json"), Marked(render_report(report, RECIPE))
    paths = set()
    for attributes, text in marked.figures:
        if "data-at" in attributes:
            value = at(content, attributes["data-at"])
            paths.add(attributes["data-at"])
            assert float(attributes["value"]) == value
            digits = 6e-2 if attributes["data-at"].endswith("_error") else 6e-3
            assert read(text) == pytest.approx(value, rel=digits, abs=5.1e-3 if value > 1 else 0), attributes
    for path in ("quality.kl", "baseline.kl", "size.bytes_after", "images.swapped.quantized", "auto.points.5.kl"):
        assert path in paths
    assert {f"blocks.{b}.groups.{g}.error.routed" for b in range(28) for g in range(4)} <= paths
    assert {f"blocks.{b}.groups.{g}.error_rtn" for b in range(28) for g in range(4)} <= paths


def test_every_dot_and_cell_is_a_value_of_the_report() -> None:
    report = rich_report(4)
    groups = [group for block in report.blocks for group in block.groups]
    expected = [share for group in groups for share in group.expert_usage]
    expected += [p.share for group in groups[8:12] if group.channels for p in group.channels.curve]
    expected += [point.kl for point in report.auto.points] if report.auto else []
    for part in ("error", "error_vision", "error_text"):
        for block in report.blocks:
            for stage in ("base", "shared", "routed"):
                expected.append(sum(getattr(getattr(g, part), stage) for g in block.groups) / 4)
    expected += [sum(g.error_rtn or 0 for g in block.groups) / 4 for block in report.blocks]
    page = Marked(render_report(report, RECIPE))
    drawn = [float(attributes["data-value"]) for attributes, _ in page.figures if "data-value" in attributes]
    assert sorted(drawn) == pytest.approx(sorted(expected))
    means = {a["data-mean"]: float(a["value"]) for a, _ in page.figures[::-1] if "data-mean" in a}
    assert means["routed"] == pytest.approx(sum(group.error.routed for group in groups) / len(groups))
    ratios = {a["data-ratio"]: float(a["value"]) for a, _ in page.figures if "data-ratio" in a}
    assert ratios == {"swapped": 1.622 / 1.874, "blanked": 2.188 / 2.41}


def test_a_rich_report_has_every_section_and_a_plain_one_is_whole() -> None:
    assert Marked(render_report(rich_report(4), RECIPE)).sections == list(SECTIONS)
    page = Marked(render_report(plain(rich_report(4))))
    assert page.sections == ["bought", "blocks", "worst", "size", "recipe"]


@pytest.mark.parametrize("name", OPTIONAL)
def test_any_one_part_may_be_missing(name: str) -> None:
    assert "<html" in render_report(rich_report(2, **{name: None}), RECIPE)


@pytest.mark.parametrize(("name", "empty"), OPTIONAL_OF_A_GROUP.items())
def test_any_one_figure_of_a_group_may_be_missing(name: str, empty: Any) -> None:
    report = rich_report(2)
    groups = [group.model_copy(update={name: empty}) for group in report.blocks[0].groups]
    first = report.blocks[0].model_copy(update={"groups": groups})
    assert "<html" in render_report(report.model_copy(update={"blocks": [first, report.blocks[1]]}), RECIPE)


def test_what_was_bought_is_said_with_its_price() -> None:
    sentence = bought(rich_report(1))
    assert sentence is not None
    assert sentence.removed == pytest.approx(1 - 0.02143 / 0.12871)
    assert sentence.sentence.startswith("qe removes 83.4 % of the KL that rounding alone loses; what it adds")
    assert "1.74 bits per quantized weight, 271.5 MiB" in sentence.sentence


@pytest.mark.parametrize(
    ("kl", "baseline", "said"),
    [
        (0.3, 0.1, "loses 200 % more KL than rounding alone"),
        (0.0, 0.0, "Rounding alone loses nothing"),
        (0.099, 0.1, "is within two standard errors"),
        (0.1, 0.1, "This is rounding to nearest"),
    ],
)
def test_what_was_not_bought_is_said_too(kl: float, baseline: float, said: str) -> None:
    report = rich_report(1)
    quality = report.quality.model_copy(update={"kl": kl})
    other = (report.baseline or quality).model_copy(update={"kl": baseline})
    other = quality if kl == baseline else other
    sentence = bought(report.model_copy(update={"quality": quality, "baseline": other}))
    assert sentence is not None
    assert said in sentence.sentence


def test_the_verdict_begins_with_the_judgement() -> None:
    report = rich_report(1)
    assert verdict(report).startswith("Rejected (1 of 3 limits missed): on held-out rows the quantized")
    kept = Acceptance(limits={"max_kl": 1.0}, verdict="accepted")
    assert verdict(report.model_copy(update={"acceptance": kept})).startswith("Accepted (the limit is kept): on held")
    assert verdict(report.model_copy(update={"acceptance": None})).startswith("On held-out rows")


def test_parts_of_the_checkpoint_sum_to_its_bytes() -> None:
    size = rich_report(1).size
    assert sum(part.bytes for part in parts(size)) == pytest.approx(size.bytes_after, abs=3)


def test_a_method_without_experts_is_one_curve_beside_rounding_alone() -> None:
    report = rich_report(3)
    flat = [
        block.model_copy(
            update={
                "groups": [
                    g.model_copy(update={"error": StageErrors(base=0.1, shared=0.1, routed=0.1), "error_vision": None})
                    for g in block.groups
                ]
            }
        )
        for block in report.blocks
    ]
    changed = report.model_copy(update={"blocks": flat})
    assert [curve.stage for curve in error_chart(changed).curves] == ["rtn", "error"]
    assert modality_charts(changed) == []


def test_vision_and_text_share_one_axis() -> None:
    vision, text = modality_charts(rich_report(5))
    assert vision.gridlines == text.gridlines
    assert [chart.title for chart in (vision, text)] == ["Vision tokens", "Text tokens"]


def test_one_frequency_panel_per_kind_with_head_before_tail() -> None:
    panels = frequency_panels(rich_report(5))
    assert [panel.title for panel in panels] == [
        f"layers.2.{kind}" for kind in ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")
    ]
    for panel in panels:
        assert panel.head[0] + panel.head[1] == pytest.approx(panel.tail[0], abs=0.2)
        assert panel.tail[0] + panel.tail[1] <= panel.width - panel.right


@pytest.mark.parametrize("independent", [0, 4])
def test_few_channels_can_be_drawn(independent: int) -> None:
    curve = [FrequencyPoint(rank=1, share=0.0)]
    report = rich_report(1)
    channels = ChannelStatistics(independent=independent, dependent=0, curve=curve)
    groups = [group.model_copy(update={"channels": channels}) for group in report.blocks[0].groups]
    report = report.model_copy(update={"blocks": [report.blocks[0].model_copy(update={"groups": groups})]})
    for panel in frequency_panels(report):
        assert panel.head[1] >= 0
        assert panel.tail[1] >= 0
    assert "<html" in render_report(report)


def test_every_expert_of_every_block_has_a_cell() -> None:
    usage = usage_chart(rich_report(6))
    assert usage is not None
    assert usage.even == 1 / EXPERTS
    assert [len(heat.cells) for heat in usage.heats] == [6 * EXPERTS] * 4
    assert max(cell.shade for heat in usage.heats for cell in heat.cells) == 1


def test_the_frontier_marks_what_nothing_tried_beats() -> None:
    search = rich_report(1).auto
    assert search is not None
    chart = frontier_chart(search)
    assert chart is not None
    assert {p.point.label for p in chart.places if not p.best} == {"W4A6 · 8 experts of rank 32", "W6A8 · no experts"}
    assert [p.point.chosen for p in chart.places].count(True) == 1
    assert chart.target_x is not None
    assert chart.target_y is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.number(0.012345), "0.0123"),
        (numbers.number(4.2e-6), "4.2×10⁻⁶"),
        (numbers.number(0.0), "0"),
        (numbers.number(9.9996), "10.0"),
        (numbers.number(None), "–"),
        (numbers.number(float("nan")), "–"),
        (numbers.number(float("inf")), "∞"),
        (numbers.number(-0.5), "−0.500"),
        (numbers.percent(0.99999), "99.99 %"),
        (numbers.percent(1.0), "100 %"),
        (numbers.percent(0.9312), "93.1 %"),
        (numbers.percent(1.2e-9), "1.2×10⁻⁷ %"),
        (numbers.change(-0.01), "−1.00 %"),
        (numbers.size(0), "0 B"),
        (numbers.size(2_356_113_408), "2.194 GiB"),
        (numbers.size(1_048_500), "1024 KiB"),
    ],
)
def test_numbers_are_written_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("make", [lambda values: logarithmic(values, 200, 10), lambda values: padded(values, 0, 800)])
@pytest.mark.parametrize("values", [[], [0.0], [0.01], [0.01, 0.0101], [1e-12, 1e3], [3e-5, 0.2]])
def test_axes_hold_any_values_and_have_a_few_ticks(make: Callable[[list[float]], Any], values: list[float]) -> None:
    axis = make(values)
    assert 2 <= len(axis.ticks()) <= 9
    low, high = sorted((axis.start, axis.end))
    assert all(low <= axis.at(value) <= high for value in [*values, *axis.ticks()])


def test_figures_that_are_no_numbers_do_not_break_the_page() -> None:
    broken = ModelQuality(
        rows=1, tokens=1, kl=float("nan"), top1_agreement=float("nan"), perplexity_full=1.0,
        perplexity_quantized=float("inf"),
    )  # fmt: skip
    report = rich_report(1, quality=broken)
    images = report.images.model_copy(update={"swapped": Reaction(full=0.0, quantized=0.0)}) if report.images else None
    assert "<html" in render_report(report.model_copy(update={"images": images}))


def test_a_warning_of_many_groups_is_said_once() -> None:
    report = rich_report(4)
    group = report.blocks[0].groups[0]
    warnings = {"warnings": [*group.warnings, "one scale per row used"]}
    blocks = [
        block.model_copy(update={"groups": [g.model_copy(update=warnings) for g in block.groups]})
        for block in report.blocks
    ]
    of_the_run = [f"{group.name}: one scale per row used", "slow disk"]
    page = render_report(report.model_copy(update={"blocks": blocks, "warnings": of_the_run}), RECIPE)
    assert page.count("one scale per row used") == 1
    assert "and 13 more input groups: one scale per row used" in page
    assert "<li>slow disk</li>" in page


def test_warnings_that_differ_in_numbers_are_one_with_a_count_on_every_surface() -> None:
    report = rich_report(2)
    many = [f"row {number}: {number + 90} tokens, at most 48" for number in range(90)]
    report = report.model_copy(update={"warnings": many})
    (line,) = [line for line in warning_list(report) if "tokens, at most" in line]
    assert line == "row 0: 90 tokens, at most 48 (and 89 more like it)"
    card = model_card(report, QuantizationSpec.preset("qe"), architecture="Qwen2VLForConditionalGeneration")
    page = render_report(report, RECIPE)
    for warning in warning_list(report):
        assert f"- {warning}" in card
        assert str(escape(warning)) in page
    assert f"{len(warning_list(report))} warnings" in page


def test_blocks_of_several_stacks_are_told_apart() -> None:
    report = rich_report(5)
    places = [("vision", 0), ("vision", 1), ("vision", None), ("language model", 0), ("language model", 1)]
    blocks = [
        block.model_copy(
            update={
                "stack": stack,
                "index": index,
                "part": "projector" if (stack, index) == ("vision", None) else None,
                "groups": [
                    group.model_copy(update={"name": f"model.visual.blocks.{index}.{group.layers[0]}"})
                    for group in block.groups
                ]
                if stack == "vision"
                else block.groups,
            }
        )
        for block, (stack, index) in zip(report.blocks, places, strict=True)
    ]
    report = report.model_copy(update={"blocks": blocks})
    chart = error_chart(report)
    assert [label for _, label in chart.ticks] == ["v0", "v1", "v+", "0", "1"]
    assert chart.x_label == "block (v0, v1 …: vision)"
    assert "vision projector, " in chart.curves[0].dots[2].label
    usage = usage_chart(report)
    assert usage is not None
    assert usage.heats[0].kind.startswith("vision ")
    assert {heat.x_label for heat in usage.heats if not heat.kind.startswith("vision")} == {"decoder block"}
    assert len(frequency_panels(report)) == 8
    assert "v+" in render_report(report)
