"""The report page and the model card: self-contained, escaped, and saying what the numbers say."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

import pytest

from quant_experts.checkpoint.card import model_card
from quant_experts.report.charts.error_chart import error_chart
from quant_experts.report.charts.kinds import short_name
from quant_experts.report.data import ModelQuality, QualityReport, Reply, StageErrors
from quant_experts.report.page import render_report, verdict
from quant_experts.spec.specification import QuantizationSpec
from tests.quant_experts.checkpoints import made_up_report
from tests.quant_experts.reports import RECIPE, rich_report

VOID = {"meta", "br"}


def groups(blocks: int) -> list[dict[str, object]]:
    return [
        {"name": f"model.layers.{n}.{kind}", "layers": ["a_proj"]}
        for n in range(blocks)
        for kind in ("self_attn.qkv", "mlp.down")
    ]


@pytest.fixture
def report() -> QualityReport:
    return made_up_report(groups(3), environment={"torch": "2.13.0"}, rows_skipped={"too long": 2})


class Balance(HTMLParser):
    """Fails on a tag that is closed and was not opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("rich", [False, True])
def test_the_page_is_well_formed_and_asks_nobody_for_anything(report: QualityReport, rich: bool) -> None:
    page = render_report(rich_report(), RECIPE) if rich else render_report(report, {"spec": {"seed": 0}})
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not any(tag in {"script", "link", "img", "iframe"} for tag, _ in parser.seen)
    assert not any("src" in attributes for _, attributes in parser.seen)
    anchors = {attributes.get("id") for _, attributes in parser.seen}
    links = [attributes["href"] for _, attributes in parser.seen if "href" in attributes]
    assert all(link and link.startswith("#") and link[1:] in anchors for link in links)
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_says_the_numbers(report: QualityReport) -> None:
    page = render_report(report, {"spec": {"seed": 11}})
    assert "93.0 % of the time" in page
    assert "perplexity goes from 9.000 to 9.200 (+2.22 %)" in page
    assert "model.layers.2.mlp.down" in page
    assert "2 skipped (too long)" in page
    assert "spec.seed" in page
    assert "2.13.0" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_the_worst_groups_come_first(report: QualityReport) -> None:
    block = report.blocks[1]
    bad = block.groups[1].model_copy(update={"error": StageErrors(base=0.5, shared=0.4, routed=0.3)})
    changed = block.model_copy(update={"groups": [block.groups[0], bad]})
    page = render_report(report.model_copy(update={"blocks": [report.blocks[0], changed, report.blocks[2]]}))
    rows = re.findall(r"<li><h3 title=\"(model[^\"]*)\">", page)
    assert rows[0] == "model.layers.1.mlp.down"


def test_names_and_warnings_from_outside_are_escaped(report: QualityReport) -> None:
    evil = report.model_copy(update={"model": "<script>alert(1)</script>", "warnings": ["<img src=x>"]})
    page = render_report(evil, {"<b>": "<i>"})
    assert "<script>" not in page
    assert "<img" not in page
    assert "<b>" not in page


def test_a_curve_has_a_point_per_block_and_less_error_is_lower(report: QualityReport) -> None:
    chart = error_chart(report)
    base, shared, routed = chart.curves
    assert [len(curve.dots) for curve in chart.curves] == [3, 3, 3]
    assert base.dots[0].y < shared.dots[0].y < routed.dots[0].y  # y grows downwards


@pytest.mark.parametrize("blocks", [1, 80])
def test_errors_of_zero_and_models_of_any_depth_can_be_drawn(blocks: int) -> None:
    report = made_up_report(groups(blocks))
    zero = StageErrors(base=0.0, shared=0.0, routed=0.0)
    first = report.blocks[0]
    exact = first.model_copy(update={"groups": [g.model_copy(update={"error": zero}) for g in first.groups]})
    chart = error_chart(report.model_copy(update={"blocks": [exact, *report.blocks[1:]]}))
    assert all(0 <= dot.y <= chart.height for curve in chart.curves for dot in curve.dots)
    places = [x for x, _ in chart.ticks]
    assert all(after - before >= 30 for before, after in itertools.pairwise(places))


def test_a_method_without_experts_has_a_page_too(report: QualityReport) -> None:
    block = report.blocks[0]
    plain = [g.model_copy(update={"expert_usage": [], "error_text": None}) for g in block.groups]
    page = render_report(report.model_copy(update={"blocks": [block.model_copy(update={"groups": plain})]}))
    assert "<td>–</td>" in page
    assert 'id="experts"' not in page


def test_the_verdict_does_not_hide_a_bad_result(report: QualityReport) -> None:
    quality = ModelQuality(
        rows=2, tokens=1000, kl=4.0, top1_agreement=0.03, perplexity_full=8.0, perplexity_quantized=800.0
    )
    assert "3.00 % of the time; perplexity goes from 8.000 to 800.0 (+9,900 %)" in verdict(
        report.model_copy(update={"quality": quality})
    )


def test_a_perplexity_of_few_tokens_is_shown_nowhere(report: QualityReport) -> None:
    few = report.model_copy(update={"quality": report.quality.model_copy(update={"tokens": 999}), "baseline": None})
    page = render_report(few)
    assert "erplexity goes" not in verdict(few)
    assert "<dt>Perplexity</dt>" not in page
    assert 'scope="col">perplexity' not in page
    assert page.count("9.000") == page.count("9.200") == 0
    assert "Perplexity is not shown: it means something from 1,000 tokens on." in page
    assert "<dt>Perplexity</dt>" in render_report(report)


def test_the_summary_has_the_replies_before_and_after(report: QualityReport) -> None:
    replies = [
        Reply(row=3, question="What <b>is</b> it?", answer="a cat", full="a cat", quantized="a cot", agreement=0.5),
        Reply(row=9, question="And here?", answer="a dog", full="a hound", quantized="a hound", agreement=1.0),
    ]
    page = render_report(report.model_copy(update={"replies": replies}))
    summary = page[: page.index("<nav")]
    for said in (
        "What &lt;b&gt;is&lt;/b&gt; it?",
        "<dt>quantized</dt><dd>a cot",
        "<dt>both models</dt><dd>a hound",
    ):
        assert said in summary
    assert 'id="replies"' not in render_report(report)


def test_the_card_says_how_to_load_and_what_it_cannot_do(report: QualityReport) -> None:
    spec = QuantizationSpec.preset("qe", scheme="W4A6")
    card = model_card(report, spec, architecture="Qwen2VLForConditionalGeneration")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n")
    hub = report.model_copy(update={"model": "Qwen/Qwen2-VL-2B-Instruct"})
    assert "base_model: Qwen/Qwen2-VL-2B-Instruct\n" in model_card(
        hub, spec, architecture="Qwen2VLForConditionalGeneration"
    )
    assert 'AutoModelForImageTextToText.from_pretrained("CHECKPOINT", trust_remote_code=True)' in card
    assert "no faster than W4A8" in card
    text = model_card(report, QuantizationSpec.preset("rtn", scheme="W4A16"), architecture="LlamaForCausalLM")
    assert "AutoModelForCausalLM" in text
    assert "unquantized activations" in text
    assert "routed experts cannot" not in text


def test_the_card_compares_with_rounding_alone_and_carries_verdicts_and_warnings() -> None:
    spec = QuantizationSpec.preset("qe", scheme="W4A6")
    card = model_card(rich_report(2), spec, architecture="Qwen2VLForConditionalGeneration")
    assert "\n\nRejected (1 of 3 limits missed): on held-out rows" in card
    assert "\n| rounding alone (RTN) | 0.129 ± 0.010 | 86.7 % | 7.144 | 4.53 | 2,071,373,906 |\n" in card
    assert "\n| **this checkpoint** | 0.0214 ± 0.0019 | 94.1 % | 6.427 | 6.27 | 2,356,113,408 |\n" in card
    assert "qe removes 83.4 % of the KL that rounding alone loses" in card
    assert "Limit missed: The same next token is picked 94.1 % of the time" in card
    assert "The quantized model still looks" in card
    assert "The calibration data is thin" in card
    assert "\n- The halves of the calibration rows agree only" in card


def test_the_card_of_a_run_that_measured_nothing_more_is_whole(report: QualityReport) -> None:
    card = model_card(report, QuantizationSpec.preset("qe"), architecture="Qwen2VLForConditionalGeneration")
    assert "rounding alone" not in card
    assert "\n| **this checkpoint** | 0.0100 | 93.0 % | 9.200 | 6.50 | 400,000,000 |\n" in card
    assert "\n\n\n" not in card


def test_a_warning_is_said_once(report: QualityReport) -> None:
    name = report.blocks[0].groups[0].name
    groups = [report.blocks[0].groups[0].model_copy(update={"warnings": [f"{name}: one scale per row"]})]
    block = report.blocks[0].model_copy(update={"groups": groups})
    page = render_report(report.model_copy(update={"blocks": [block], "warnings": ["twice", "twice"]}))
    assert page.count("<li>twice</li>") == 1
    assert f"<li>{short_name(name)}: one scale per row</li>" in page
