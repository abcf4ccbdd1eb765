"""Which groups keep more bits: names, shares and budgets, and what comes of it in a checkpoint."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from quant_experts.checkpoint.layout import stored_group_bits
from quant_experts.errors import InvalidSpec, Stopped
from quant_experts.files import file_digest
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import Advanced, BlockFinished, Event, PhaseStarted
from quant_experts.report.data import QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.sensitivity.mixed_precision import (
    assign,
    check_mixed_precision,
    fill_budget,
    most_sensitive,
    named_groups,
    upward_steps,
)
from quant_experts.spec.methods import levels_of
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model
from tests.quant_experts.measuring import measuring
from tests.rows import image_row, text_row, write_rows

OPTIONS: dict[str, Any] = {
    "samples": 8,
    "experts": 3,
    "shared_rank": 4,
    "routed_rank": 4,
    "important_channels": 8,
    "group_size": 32,
    "reservoir": 256,
}
LABELS = (("self_attn", "qkv", (64, 32, 32)), ("mlp", "gate_up", (96, 96)), ("mlp", "down", (64,)))


def plans(blocks: int) -> list[list[GroupPlan]]:
    """Groups of different sizes, as decoder blocks have them."""
    return [
        [
            GroupPlan(
                f"model.layers.{block}.{parent}.{label}",
                f"model.layers.{block}.{parent}",
                label,
                tuple(f"{label}_{i}" for i in range(len(outs))),
                block,
                96 if label == "down" else 64,
                outs,
            )
            for parent, label, outs in LABELS
        ]
        for block in range(blocks)
    ]


def flat(blocks: list[list[GroupPlan]]) -> list[GroupPlan]:
    return [plan for block in blocks for plan in block]


TWELVE = plans(12)
KL = st.lists(st.floats(0, 10), min_size=36, max_size=36).map(
    lambda values: dict(zip((plan.name for plan in flat(TWELVE)), values, strict=True))
)


def bits_per_weight(spec: QuantizationSpec, weight_bits: dict[str, int]) -> float:
    activations = spec.bits.activation_bits
    total = 0
    for plan in flat(TWELVE):
        own = spec.model_copy(update={"scheme": f"W{weight_bits.get(plan.name, spec.bits.weight_bits)}A{activations}"})
        total += stored_group_bits(plan, own, torch.bfloat16)
    return total / sum(plan.weights for plan in flat(TWELVE))


# --- The laws of the assignment ------------------------------------------------------------------------------------


@given(KL, st.floats(0.01, 1))
def test_a_share_is_filled_in_order_of_kl_per_weight(kl: dict[str, float], share: float) -> None:
    groups = flat(TWELVE)
    chosen = most_sensitive(groups, kl, share)
    limit = share * sum(plan.weights for plan in groups)
    taken = sum(plan.weights for plan in groups if plan.name in chosen)
    assert taken <= limit or len(chosen) == 1
    value = {plan.name: kl[plan.name] / plan.weights for plan in groups}
    for plan in groups:  # who is left out is less sensitive than all that are in, or did not fit beside those before
        ahead = (other for other in groups if other.name in chosen and value[other.name] >= value[plan.name])
        before = sum(other.weights for other in ahead)
        least = min(value[name] for name in chosen)
        assert plan.name in chosen or value[plan.name] <= least or before + plan.weights > limit


@given(KL, st.sampled_from(["W2A8", "W3A8", "W4A6", "W5A8", "W6A8", "W7A8"]), st.floats(0, 6), st.sampled_from([3, 4]))
def test_a_budget_is_never_exceeded_and_the_best_step_is_never_left_out(
    kl: dict[str, float], scheme: str, extra: float, version: int
) -> None:
    options = {**OPTIONS, "scheme": scheme, "method_version": version}
    spec = QuantizationSpec.preset("qe", **options)
    budget = min(bits_per_weight(spec, {}) + extra + 1e-9, 16)
    spec = QuantizationSpec.preset("qe", **options, budget={"bits_per_weight": budget})
    assigned = assign(spec, TWELVE, kl, torch.bfloat16)
    assert assigned is not None
    bits, report = assigned
    assert bits_per_weight(spec, bits) <= budget
    assert set(bits.values()) <= {bits for bits in levels_of(version) if bits > spec.bits.weight_bits}
    assert report.groups == [plan.name for plan in flat(TWELVE) if plan.name in bits]
    assert report.decided_by == "budget"
    steps = upward_steps(spec, flat(TWELVE), kl, torch.bfloat16)
    best = max(steps, key=lambda step: step.gain / step.cost)
    room = (budget - bits_per_weight(spec, {})) * sum(plan.weights for plan in flat(TWELVE))
    if best.cost < room - 1:
        assert bits.get(best.group, 0) >= best.bits


def test_a_group_that_matters_a_hundred_times_more_gets_eight_bits_before_others_get_more() -> None:
    spec = QuantizationSpec.preset("rtn", **{**OPTIONS, "scheme": "W4A8"})
    kl = {plan.name: 1.0 for plan in flat(TWELVE)}
    kl["model.layers.3.mlp.down"] = 100.0
    steps = upward_steps(spec, flat(TWELVE), kl, torch.bfloat16)
    room = sum(step.cost for step in steps if step.group == "model.layers.3.mlp.down")
    assert fill_budget(steps, 4, room) == {"model.layers.3.mlp.down": 8}
    # A hair of room more or less decides one step, never a group's second step before its first.
    assert fill_budget(steps, 4, room - 1)["model.layers.3.mlp.down"] == 7


# --- Names and refusals --------------------------------------------------------------------------------------------


def test_a_name_may_be_whole_or_an_end() -> None:
    groups = flat(TWELVE)
    assert named_groups(["model.layers.1.mlp.down"], groups) == ["model.layers.1.mlp.down"]
    assert named_groups(["layers.1.mlp.down", "1.self_attn.qkv"], groups) == [
        "model.layers.1.self_attn.qkv",
        "model.layers.1.mlp.down",
    ]
    assert len(named_groups(["down"], groups)) == 12


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("layers.0.mlp.dwon", r"did you mean layers\.0\.mlp\.down"),
        ("layers.3.self_attn.qkv_1", r"did you mean layers\.3\.self_attn\.qkv"),
        ("vision", r"names are like model\.layers\.0\.self_attn\.qkv"),
    ],
)
def test_an_unknown_name_is_refused_with_near_matches(name: str, hint: str) -> None:
    with pytest.raises(InvalidSpec, match=f"no input group is called {name!r}; {hint}"):
        named_groups([name], flat(TWELVE))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"scheme": "W8A8", "sensitive": {"share": 0.1, "weight_bits": 6}},
            "weight_bits 6 is not more than the 8 bits",
        ),
        ({"scheme": "W8A8", "sensitive": {"share": 0.1}}, "weight_bits 8 is not more than the 8"),
        ({"scheme": "W8A8", "budget": {"bits_per_weight": 16}}, "has the most weight bits already"),
        ({"scheme": "W4A6", "budget": {"bits_per_weight": 4.5}}, r"4\.5 bits per weight are less than the 9\.\d{3} "),
        ({"scheme": "W4A6", "sensitive": {"groups": ["nobody"]}}, "no input group is called 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options: dict[str, Any], reason: str) -> None:
    spec = QuantizationSpec.preset("qe", **{**OPTIONS, **options})
    with pytest.raises(InvalidSpec, match=reason):
        check_mixed_precision(spec, TWELVE, torch.bfloat16)


def test_a_spec_asks_for_one_way_only() -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        QuantizationSpec.preset("qe", sensitive={"share": 0.1}, budget={"bits_per_weight": 6})


# --- Whole runs ----------------------------------------------------------------------------------------------------


class Runs:
    """One model and its rows, quantized in several ways."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = make_model("qwen2_vl", directory / "model", blocks=2)
        rows = [image_row(i) if i % 3 else text_row(i) for i in range(10)]
        self.rows = write_rows(directory / "rows.jsonl", rows)

    def run(self, name: str, method: str, **options: Any) -> QualityReport:
        spec = QuantizationSpec.preset(method, **{**OPTIONS, **options})
        where = self.directory / name
        return quantize(model=self.model, calibration=self.rows, output=where / "out", work=where / "work", spec=spec)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("mixed"))


def groups_of(report: QualityReport) -> dict[str, Any]:
    return {group.name: group for block in report.blocks for group in block.groups}


@pytest.mark.slow
def test_the_most_sensitive_share_has_eight_bits_in_a_checkpoint_that_loads(runs: Runs) -> None:
    plain = runs.run("plain", "rtn", scheme="W3A8")
    report = runs.run("share", "rtn", scheme="W3A8", sensitive={"share": 0.4})  # loads: the run itself proves it
    mixed = report.mixed_precision
    assert mixed is not None
    assert (mixed.decided_by, mixed.weight_bits) == ("share", 8)
    assert 0.2 < mixed.share <= 0.4
    groups = groups_of(report)
    assert {name for name, group in groups.items() if group.weight_bits == 8} == set(mixed.groups)
    assert {group.weight_bits for group in groups.values()} == {3, 8}
    assert all(group.sensitivity is not None and group.sensitivity.kl > 0 for group in groups.values())
    config = json.loads((runs.directory / "share/out/config.json").read_text())
    entries = {entry["name"]: entry for entry in config["quantization_config"]["groups"]}
    stored = {}
    for path in (runs.directory / "share/out").glob("*.safetensors"):
        stored.update(load_file(path))
    for name, entry in entries.items():
        assert entry["weight_bits"] == (8 if name in mixed.groups else 3)
        for layer in entry["layers"]:
            packed = stored[f"{entry['parent']}.{layer}.weight_packed"]
            width = 192 if entry["label"] == "down" else 128
            assert packed.shape[1] == width * entry["weight_bits"] // 32
    assert report.quality.kl < 0.7 * plain.quality.kl
    assert plain.mixed_precision is None


@pytest.mark.slow
def test_a_budget_holds_with_adapters_included(runs: Runs) -> None:
    plain = runs.run("base", "qe", scheme="W3A8")
    budget = plain.size.effective_bits + 1.5
    report = runs.run("budget", "qe", scheme="W3A8", budget={"bits_per_weight": budget})
    assert report.mixed_precision is not None
    assert plain.size.effective_bits < report.size.effective_bits <= budget
    assert budget - report.size.effective_bits < 1.0
    assert report.quality.kl < plain.quality.kl
    spec = QuantizationSpec.preset("qe", **{**OPTIONS, "scheme": "W3A8"})
    by_name = groups_of(plain)
    for plan in flat(measuring(runs.directory / "plans", "qwen2_vl", blocks=2).context.plans):
        predicted = stored_group_bits(plan, spec, torch.bfloat16) / plan.weights
        group = by_name[plan.name]
        assert group.effective_bits <= predicted
        if group.smoothing != "none" and not any("fitted" in warning for warning in group.warnings):
            assert group.effective_bits == predicted


@pytest.mark.parametrize(("method", "dtype"), [("qe", "bf16"), ("qe", "int8"), ("aser", "bf16"), ("rtn", "bf16")])
def test_bytes_are_known_before_the_fit(runs: Runs, method: str, dtype: str, tmp_path: Path) -> None:
    """Up to experts that a group had too few channels for."""
    spec = QuantizationSpec.preset(method, **{**OPTIONS, "scheme": "W5A8", "adapter_dtype": dtype})
    stop = threading.Event()
    seen: list[Any] = []

    def on_event(event: Event) -> None:
        if isinstance(event, BlockFinished):
            seen.extend(event.groups)
            stop.set()

    with pytest.raises(Stopped):
        quantize(
            model=runs.model,
            calibration=runs.rows,
            output=tmp_path / "out",
            work=tmp_path / "work",
            spec=spec,
            on_event=on_event,
            should_stop=stop.is_set,
        )
    for plan, group in zip(measuring(tmp_path, "qwen2_vl").context.plans[0], seen, strict=True):
        predicted = stored_group_bits(plan, spec, torch.bfloat16)
        if not any("fitted" in warning for warning in group.warnings):
            assert group.effective_bits * plan.weights == pytest.approx(predicted)
        assert group.effective_bits * plan.weights <= predicted + 1e-6


def test_a_run_resumed_elsewhere_decides_as_before_without_measuring_again(runs: Runs, tmp_path: Path) -> None:
    """Only the files named in events travel; the records of what was measured are among those of block 0."""
    spec = QuantizationSpec.preset("mbq", **{**OPTIONS, "scheme": "W3A8", "sensitive": {"share": 0.4}})

    def fit(where: Path, stop_after: int) -> list[Event]:
        events: list[Event] = []
        stop = threading.Event()

        def on_event(event: Event) -> None:
            events.append(event)
            done = isinstance(event, BlockFinished) and event.block == stop_after and not event.resumed
            if done or (isinstance(event, PhaseStarted) and event.phase == "evaluating"):
                stop.set()

        with pytest.raises(Stopped):
            quantize(
                model=runs.model,
                calibration=runs.rows,
                output=where / "out",
                work=where / "work",
                spec=spec,
                on_event=on_event,
                should_stop=stop.is_set,
            )
        return events

    fit(tmp_path / "whole", 9)
    first = next(event for event in fit(tmp_path / "here", 0) if isinstance(event, BlockFinished))
    names = {file.name for file in first.files}
    assert {"gradients.json", "sensitivity-W3A8.json"} < names
    for name in names:
        (tmp_path / "there/work" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "here/work" / name, tmp_path / "there/work" / name)
    events = fit(tmp_path / "there", 9)
    assert not any(isinstance(event, Advanced) for event in events)
    assert [event.resumed for event in events if isinstance(event, BlockFinished)] == [True, False]
    for block in ("blocks/00000.safetensors", "blocks/00001.safetensors"):
        assert file_digest(tmp_path / "there/work" / block) == file_digest(tmp_path / "whole/work" / block)


def test_blocks_of_another_decision_are_not_taken_over(runs: Runs, tmp_path: Path) -> None:
    """A record that was lost and came out differently must not mix two assignments in one model."""
    spec = QuantizationSpec.preset("rtn", **{**OPTIONS, "scheme": "W3A8", "sensitive": {"share": 0.4}})
    stop = threading.Event()
    resumed: list[bool] = []

    def on_event(event: Event) -> None:
        if isinstance(event, BlockFinished):
            resumed.append(event.resumed)
            stop.set()

    def attempt() -> None:
        stop.clear()
        with pytest.raises(Stopped):
            quantize(
                model=runs.model,
                calibration=runs.rows,
                output=tmp_path / "out",
                work=tmp_path / "work",
                spec=spec,
                on_event=on_event,
                should_stop=stop.is_set,
            )

    attempt()
    path = tmp_path / "work/sensitivity-W3A8.json"
    record = json.loads(path.read_text())
    order = sorted(record["content"], key=lambda name: record["content"][name]["kl"])
    for name, kl in zip(order, (10.0 / (i + 1) for i in range(len(order))), strict=True):
        record["content"][name]["kl"] = kl
    path.write_text(json.dumps(record))
    attempt()
    assert resumed == [False, False]
