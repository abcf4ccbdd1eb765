"""A whole run on a tiny model: what it says and leaves, that it can be killed, that bad input ends it clearly."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from quant_experts.calibration.captured_inputs import CapturedRow, read_captured_inputs
from quant_experts.checkpoint.layout import adapter_dtype
from quant_experts.errors import InvalidCalibration, InvalidModel, InvalidSpec, QuantExpertsError, Stopped
from quant_experts.files import file_digest
from quant_experts.forward import modeling_quant_experts
from quant_experts.progress import Advanced, BlockFinished, Event, Finished, Forecast, GroupFitted, PhaseStarted, Warned
from quant_experts.report.data import QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import AcceptIf, QuantizationSpec
from quant_experts.walk import block_pass
from quant_experts.walk.resume_files import HiddenStates
from tests.models import make_model
from tests.rows import data_uri, image_row, picture, text_row, write_rows

OPTIONS: dict[str, Any] = {
    "samples": 8,
    "experts": 3,
    "shared_rank": 4,
    "routed_rank": 4,
    "important_channels": 8,
    "group_size": 32,
    "reservoir": 256,
}
SPEC = QuantizationSpec.preset("qe", **OPTIONS)
RUN = "import sys; from tests.quant_experts.test_pipeline import killed_run; killed_run(*sys.argv[1:])"


def run(directory: Path, *, model: Path, rows: Path, spec: QuantizationSpec = SPEC, **more: Any) -> QualityReport:
    return quantize(model=model, calibration=rows, output=directory / "out", spec=spec, work=directory / "work", **more)


def killed_run(directory: str, model: str, rows: str, moment: str) -> None:
    """In a child process: run until ``moment`` (``block:1``, ``group:2:1``, or ``never``), then die by SIGKILL."""
    fitted = 0

    def die(event: Event) -> None:
        nonlocal fitted
        fitted += isinstance(event, GroupFitted)
        at_block = isinstance(event, BlockFinished) and not event.resumed and moment == f"block:{event.block}"
        at_group = isinstance(event, GroupFitted) and moment == f"group:{event.block}:{fitted}"
        if at_block or at_group:
            os.kill(os.getpid(), signal.SIGKILL)

    run(Path(directory), model=Path(model), rows=Path(rows), on_event=die)


def in_a_child(directory: Path, model: Path, rows: Path, moment: str) -> int:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", RUN, str(directory), str(model), str(rows), moment]
    return subprocess.run(command, cwd=root, check=False, stderr=subprocess.DEVNULL).returncode


def fit_only(directory: Path, source: Undisturbed) -> list[int]:
    """Run up to packing and compare block files; returns the blocks taken over from what ``directory`` held."""
    events: list[Event] = []
    packing = threading.Event()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, PhaseStarted) and event.phase == "evaluating":
            packing.set()

    with pytest.raises(Stopped, match="before packing"):
        run(directory, model=source.model, rows=source.rows, on_event=on_event, should_stop=packing.is_set)
    for folder in (".", "blocks", "chain"):  # language model calls, block tensors, hidden states of all streams
        assert digests(directory / "work" / folder) == digests(source.work / folder)
    return [event.block for event in events if isinstance(event, BlockFinished) and event.resumed]


def digests(directory: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(directory.glob("*.safetensors"))}


class Undisturbed:
    """One run from beginning to end, shared by tests that look at what it left."""

    def __init__(self, directory: Path, family: str, blocks: int) -> None:
        self.directory = directory
        self.model = make_model(family, directory / "model", blocks=blocks)
        make_row = text_row if family == "llama" else image_row
        self.rows = write_rows(directory / "rows.jsonl", [make_row(i) for i in range(10)])
        self.events: list[Event] = []
        self.report = run(directory, model=self.model, rows=self.rows, on_event=self.events.append)

    @property
    def output(self) -> Path:
        return self.directory / "out"

    @property
    def work(self) -> Path:
        return self.directory / "work"

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("vision"), "qwen3_vl", 2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("text"), "llama", 4)


# --- What a run says and leaves ------------------------------------------------------------------------------------


def test_a_run_tells_its_phases_blocks_and_files_in_order(vision: Undisturbed) -> None:
    phases = [event.phase for event in vision.of(PhaseStarted)]
    assert phases == ["preparing", "calibrating", "fitting", "evaluating", "packing", "verifying", "publishing"]
    assert [event.done for event in vision.of(Advanced)] == list(range(1, 9))
    assert [event.block for event in vision.of(BlockFinished)] == [0, 1]
    assert [event.group.name.rsplit(".", 1)[1] for event in vision.of(GroupFitted)] == [
        "qkv",
        "o",
        "gate_up",
        "down",
    ] * 2
    finished = vision.of(Finished)[0]
    assert vision.events[-1] is finished
    for file in finished.files:
        assert (vision.output / file.name).stat().st_size == file.bytes
        assert file_digest(vision.output / file.name) == file.sha256


def test_replies_of_full_precision_are_what_stock_transformers_foretells(text: Undisturbed) -> None:
    replies = text.report.replies
    assert len(replies) == 2
    model = AutoModelForCausalLM.from_pretrained(text.model)
    tokenizer = AutoTokenizer.from_pretrained(text.model)
    rows = [json.loads(line)["messages"] for line in text.rows.read_text().splitlines()]
    for reply in replies:
        messages = rows[reply.row - 1]
        assert (reply.question, reply.answer) == (messages[0]["content"], messages[1]["content"])
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        answer = tokenizer(rendered[rendered.index(reply.answer) :], add_special_tokens=False)["input_ids"]
        logits = model(**ids).logits[0, -len(answer) - 1 : -1]
        assert reply.full == tokenizer.decode(logits.argmax(-1), skip_special_tokens=True).strip()
        assert 0 <= reply.agreement <= 1
        assert (reply.agreement == 1) <= (reply.full == reply.quantized)


def test_the_whole_run_is_forecast_before_every_event_from_the_first_row_on(vision: Undisturbed) -> None:
    kinds = [type(event) for event in vision.events]
    first = kinds.index(Forecast)
    assert kinds[:first].count(Advanced) == 0
    assert kinds[first::2] == [Forecast] * len(kinds[first::2])
    said = [event.fraction for event in vision.of(Forecast)]
    assert 0 < said[0] < said[-1] <= 1


def test_the_report_measures_held_out_rows_and_modalities(vision: Undisturbed) -> None:
    report = vision.report
    assert QualityReport.model_validate_json((vision.output / "quality_report.json").read_text()) == report
    assert (report.rows_used, report.rows_held_out, report.rows_skipped) == (6, 2, {})
    assert report.tokens_vision > 0
    assert report.tokens_text > 0
    assert report.quality.rows == 2
    assert 0 < report.quality.kl < 0.1
    assert 0.3 < report.quality.top1_agreement <= 1
    assert abs(report.quality.perplexity_quantized / report.quality.perplexity_full - 1) < 0.1
    for block in report.blocks:
        assert set(block.seconds_by_phase) >= {"read", "observe", "fit", "forward", "write"}
        for group in block.groups:
            assert group.error.routed < group.error.base
            assert group.error_vision is not None
            assert group.error_text is not None
            assert abs(sum(group.expert_usage) - 1) < 1e-6
            assert group.error_rtn is not None
            assert group.error_rtn > group.error.routed
            assert group.channels is not None
            assert group.channels.split_half is not None
            assert group.channels.independent == 8


def test_the_report_compares_with_rounding_and_judges_its_own_rows(vision: Undisturbed) -> None:
    report = vision.report
    assert report.baseline is not None
    assert report.baseline.kl > report.quality.kl
    assert report.baseline.tokens == report.quality.tokens
    assert report.quality.kl_standard_error is not None
    assert report.images is not None
    assert report.images.rows == 2
    assert report.calibration is not None
    assert report.calibration.verdict == "poor"
    assert "only 6 rows were fitted on" in report.calibration.reasons[0]
    assert [warning for warning in report.warnings if warning in report.calibration.reasons] == (
        report.calibration.reasons
    )
    assert report.acceptance is None


def test_sizes_are_those_of_the_files(vision: Undisturbed) -> None:
    def tensor_bytes(directory: Path) -> int:
        tensors = [tensor for path in directory.glob("*.safetensors") for tensor in load_file(path).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    size = vision.report.size
    assert size.bytes_before == tensor_bytes(vision.model)
    assert size.bytes_after == tensor_bytes(vision.output)
    assert size.quantized_weights == 2 * (128 * 256 + 128 * 128 + 128 * 384 + 192 * 128)
    # 4 bits, one bf16 scale per 32 weights, 128 bits of shape per layer
    assert size.base_bits == pytest.approx(4 + 16 / 32 + 2 * 7 * 128 / size.quantized_weights)
    assert size.effective_bits > size.base_bits


def test_tensors_outside_of_the_input_groups_are_the_models_own(vision: Undisturbed) -> None:
    source = load_file(vision.model / "model.safetensors")
    packed = {}
    for path in vision.output.glob("*.safetensors"):
        packed.update(load_file(path))
    kept = [name for name in source if "_proj.weight" not in name or "visual" in name]
    assert len(kept) > 20
    for name in kept:
        assert torch.equal(packed[name], source[name]), name
    marks = [packed[name] for name in source if name.endswith("q_proj.weight") and "visual" not in name]
    assert marks
    assert all(mark.numel() == 0 for mark in marks)  # they stop a load without the loader


def test_the_loaded_checkpoint_is_the_model_that_was_measured(
    vision: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not within a tolerance: the walk's last hidden states are those of the loaded model, bit for bit."""
    monkeypatch.setattr(modeling_quant_experts, "kernel_rows", lambda: 0)
    model = AutoModelForImageTextToText.from_pretrained(vision.output).eval()
    fingerprint = json.loads((vision.work / "calls.json").read_text())["fingerprint"]
    inputs = read_captured_inputs(vision.work, fingerprint)
    assert inputs is not None
    row = inputs.held_out[0]
    model_inputs = inputs.probe(row)
    assert model_inputs is not None
    outputs: list[torch.Tensor] = []
    last = model.model.language_model.layers[-1]
    last.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        model(**model_inputs, use_cache=False)
    assert torch.equal(outputs[0], HiddenStates(vision.work, inputs, 2).read("quantized", row))


def test_only_the_last_hidden_states_stay_on_disk(text: Undisturbed) -> None:
    assert sorted(path.name for path in (text.work / "chain").iterdir()) == ["00002.safetensors", "00003.safetensors"]
    superseded = [event.superseded for event in text.of(BlockFinished)]
    assert superseded == [(), (), ("chain/00000.safetensors",), ("chain/00001.safetensors",)]


def test_block_files_are_named_with_their_digests(text: Undisturbed) -> None:
    first, *others = text.of(BlockFinished)
    assert [file.name for file in others[0].files] == [
        "blocks/00001.safetensors",
        "chain/00001.safetensors",
        "blocks/00001.json",
    ]
    assert {"calls.safetensors", "calls.json"} < {file.name for file in first.files}
    for event in text.of(BlockFinished):
        for file in event.files:
            if not file.name.startswith("chain/0000") or event.block >= 2:
                assert file_digest(text.work / file.name) == file.sha256


# --- Stopping, killing, resuming -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_after_several_blocks_and_resumed_elsewhere_the_bytes_are_the_same(
    text: Undisturbed, tmp_path: Path
) -> None:
    for moment in ("block:0", "group:2:6", "block:2"):
        assert in_a_child(tmp_path, text.model, text.rows, moment) == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    events: list[Event] = []
    run(tmp_path, model=text.model, rows=text.rows, on_event=events.append)
    resumed = [event.block for event in events if isinstance(event, BlockFinished) and event.resumed]
    assert resumed == [0, 1, 2]
    assert digests(tmp_path / "out") == digests(text.output)


@pytest.mark.slow
def test_a_vision_run_killed_between_deep_stack_blocks_ends_with_the_same_bytes(
    vision: Undisturbed, tmp_path: Path
) -> None:
    assert in_a_child(tmp_path, vision.model, vision.rows, "block:0") == -signal.SIGKILL
    assert fit_only(tmp_path, vision) == [0]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], list[int]]] = {
    "nothing": (lambda work: None, [0, 1, 2, 3]),
    "newest hidden states": (lambda work: flip(work / "chain/00003.safetensors"), [0, 1, 2]),
    "a block in the middle": (lambda work: flip(work / "blocks/00001.safetensors"), []),
    "newest record": (lambda work: (work / "blocks/00003.json").write_text("{"), [0, 1, 2]),
    "calls": (lambda work: flip(work / "calls.safetensors"), [0, 1, 2, 3]),
    "calls never recorded": (lambda work: (work / "calls.json").unlink(), [0, 1, 2, 3]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again_and_the_bytes_are_the_same(
    text: Undisturbed, damage: str, tmp_path: Path
) -> None:
    spoil, taken_over = DAMAGES[damage]
    shutil.copytree(text.work, tmp_path / "work")
    spoil(tmp_path / "work")
    assert fit_only(tmp_path, text) == taken_over


@pytest.mark.slow
def test_only_files_named_in_events_are_needed_to_go_on_elsewhere(text: Undisturbed, tmp_path: Path) -> None:
    wanted = {file.name for event in text.of(BlockFinished)[:3] for file in event.files}
    wanted -= {name for event in text.of(BlockFinished)[:3] for name in event.superseded}
    wanted -= {"chain/00001.safetensors"}  # gone from this finished directory, and not needed behind block 2
    for name in wanted:
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(text.work / name, tmp_path / "work" / name)
    assert fit_only(tmp_path, text) == [0, 1, 2]


def test_stopping_keeps_finished_blocks_and_leaves_nothing_at_the_output(text: Undisturbed, tmp_path: Path) -> None:
    stop = threading.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, BlockFinished) and event.block == 1:
            stop.set()

    with pytest.raises(Stopped):
        run(tmp_path, model=text.model, rows=text.rows, on_event=on_event, should_stop=stop.is_set)
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "work/blocks").glob("*.json")) == ["00000.json", "00001.json"]


def test_another_run_does_not_resume_from_this_directory(text: Undisturbed, tmp_path: Path) -> None:
    shutil.copytree(text.work, tmp_path / "work")
    other = QuantizationSpec.preset("qe", **{**OPTIONS, "seed": 1})
    with pytest.raises(InvalidSpec, match="holds a run with another spec"):
        run(tmp_path, model=text.model, rows=text.rows, spec=other)
    rows = write_rows(tmp_path / "rows.jsonl", [text_row(i + 1) for i in range(10)])
    with pytest.raises(InvalidSpec, match="holds a run with another rows"):
        run(tmp_path, model=text.model, rows=rows)


# --- Input that cannot be used -------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_anything_runs(text: Undisturbed, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("...")
    with pytest.raises(InvalidSpec, match="exists and is not an empty directory"):
        run(tmp_path, model=text.model, rows=text.rows)
    assert not (tmp_path / "work").exists()


def test_a_group_size_that_does_not_divide_is_refused_before_anything_runs(text: Undisturbed, tmp_path: Path) -> None:
    spec = QuantizationSpec.preset("qe", **{**OPTIONS, "group_size": 128})
    with pytest.raises(InvalidSpec, match=r"128 does not divide the input width 192 of model\.layers\.0\.mlp\.down"):
        run(tmp_path, model=text.model, rows=text.rows, spec=spec)


def corrupt(index: int) -> dict[str, Any]:
    return image_row(index, data_uri(picture()[:200]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (image_row(1, "nowhere.png"), "row 3, image 1: 'nowhere.png' does not exist"),
        (corrupt(1), "row 3, image 1: the image is corrupt"),
        (image_row(1, data_uri(picture(kind="GIF"))), "row 3, image 1: not a PNG, JPEG or WEBP image"),
        ({"messages": [{"role": "user", "content": ""}]}, "row 3: no text"),
    ],
)
def test_a_bad_row_ends_the_run_and_is_named(vision: Undisturbed, row: Any, reason: str, tmp_path: Path) -> None:
    rows = [image_row(i) for i in range(4)]
    write_rows(tmp_path / "rows.jsonl", [*rows[:2], row, *rows[2:]])
    with pytest.raises(InvalidCalibration, match=reason):
        run(tmp_path, model=vision.model, rows=tmp_path / "rows.jsonl")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_ends_the_run_and_is_named(text: Undisturbed, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(text.model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InvalidModel, match=r"layers\.1\.mlp\.down_proj"):
        run(tmp_path, model=model, rows=text.rows)


def test_a_float16_model_that_overflows_names_where(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model", dtype=torch.float16)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 0
    tensors["model.layers.0.mlp.up_proj.weight"] += 60000
    tensors["model.layers.0.mlp.gate_proj.weight"] *= 0
    tensors["model.layers.0.mlp.gate_proj.weight"] += 60000
    save_file(tensors, model / "model.safetensors")
    rows = write_rows(tmp_path / "rows.jsonl", [text_row(i) for i in range(6)])
    with pytest.raises(QuantExpertsError, match=r"layers\.0\.mlp\.down: .* not finite") as raised:
        run(tmp_path, model=model, rows=rows)
    assert raised.value.code == "numerical_failure"


def strict(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def assert_finite(value: Any) -> None:
    """No NaN or infinity below ``value``; pydantic would write them as null."""
    if isinstance(value, float):
        assert math.isfinite(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        assert_finite(part)


@pytest.mark.parametrize(
    ("rows", "reasons"),
    [
        ([image_row(i) for i in range(3)], ["only 1 row was fitted on", "only 2 rows were held out"]),
        (
            [text_row(0)] * 6,
            ["no calibration row has an image", "all 4 calibration rows are the same", "2 of 2 held-out"],
        ),
    ],
    ids=["three rows", "the same text for a vision model"],
)
def test_rows_that_can_hardly_carry_a_run_finish_with_warnings_and_finite_figures(
    vision: Undisturbed, rows: list[Any], reasons: list[str], tmp_path: Path
) -> None:
    limits = AcceptIf(max_kl=100.0, min_image_sensitivity=0.1)
    report = run(tmp_path, model=vision.model, rows=write_rows(tmp_path / "rows.jsonl", rows), accept_if=limits)
    stored = (tmp_path / "out/quality_report.json").read_text()
    assert QualityReport.model_validate(json.loads(stored, parse_constant=strict)) == report
    assert_finite(report.model_dump())
    assert report.calibration is not None
    assert report.calibration.verdict == "poor"
    for reason in reasons:
        assert sum(reason in warning for warning in report.warnings) == 1
    assert report.acceptance is not None
    assert report.acceptance.verdict == ("rejected" if report.images is None else "accepted")


def test_limits_are_no_part_of_what_a_run_is(text: Undisturbed, tmp_path: Path) -> None:
    """A rejected run may be judged anew by other limits, without fitting anything."""
    shutil.copytree(text.work, tmp_path / "work")
    events: list[Event] = []
    limits = AcceptIf(max_kl=1e-9)
    report = run(tmp_path, model=text.model, rows=text.rows, accept_if=limits, on_event=events.append)
    assert not [event for event in events if isinstance(event, GroupFitted)]
    assert report.acceptance is not None
    assert report.acceptance.verdict == "rejected"
    assert (tmp_path / "out/quality_report.json").is_file()
    assert report.quality == text.report.quality
    assert report.baseline == text.report.baseline
    assert report.images is None


def test_text_rows_for_a_vision_model_are_used_and_warned_about(vision: Undisturbed, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [text_row(i) for i in range(4)])
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, GroupFitted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model=vision.model, rows=rows, on_event=on_event)
    assert any(isinstance(event, Warned) and "no calibration row has an image" in event.message for event in events)


# --- Dtypes and tied heads -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "tied"), [("qwen2_vl", torch.float16, True), ("qwen3", torch.float32, False)]
)
def test_each_dtype_and_a_tied_head_survive(family: str, dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model", dtype=dtype, tied=tied, blocks=1)
    make_row = image_row if family.endswith("vl") else text_row
    report = run(tmp_path, model=model, rows=write_rows(tmp_path / "rows.jsonl", [make_row(i) for i in range(5)]))
    stored = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        stored.update(load_file(path))
    assert stored[next(name for name in stored if name.endswith("q_proj.weight_scale"))].dtype == adapter_dtype(dtype)
    assert ("lm_head.weight" in stored) is not tied
    assert report.quality.kl < 0.1


def test_a_hidden_state_is_on_disk_before_the_next_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are held out are as many as the user wants: memory must not grow with them."""
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    through_block = block_pass._running_block

    @contextmanager
    def watched(*arguments: Any) -> Iterator[block_pass.RunRow]:
        with through_block(*arguments) as passing:

            def run_row(row: CapturedRow, stream: str) -> torch.Tensor:
                alive.append(sum(state() is not None for state in made))
                state = passing(row, stream)
                made.append(weakref.ref(state))
                return state

            yield run_row

    monkeypatch.setattr(block_pass, "_running_block", watched)
    evaluating = threading.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseStarted) and event.phase == "evaluating":
            evaluating.set()

    model = make_model("llama", tmp_path / "model", blocks=1)
    rows = write_rows(tmp_path / "rows.jsonl", [text_row(i) for i in range(6)])
    with pytest.raises(Stopped):
        run(tmp_path, model=model, rows=rows, on_event=on_event, should_stop=evaluating.is_set)
    assert len(alive) == 6 + 2 + 2 + 2  # observed, held out in full precision, rounded to nearest, quantized
    assert max(alive) == 0


def test_one_bad_row_among_many_is_skipped_with_its_number_and_ends_no_run(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model")
    rows = [text_row(i) for i in range(24)]
    rows[4] = image_row(4)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    spec = QuantizationSpec.preset("rtn", scheme="W4A16", group_size=32, samples=24)
    report = run(tmp_path, model=model, rows=path, spec=spec)
    reason = "calibration row 5: it has an image, but llama takes text only"
    assert report.rows_skipped == {reason: 1}
    assert report.rows_used + report.rows_held_out == 23
    assert f"skipped: {reason}" in report.warnings
    bad = write_rows(tmp_path / "bad.jsonl", [image_row(i) if i % 6 == 0 else text_row(i) for i in range(24)])
    with pytest.raises(
        InvalidCalibration, match=r"row \d+: it has an image.*; 3 of 24 rows cannot be used, at most 10%"
    ):
        run(tmp_path / "again", model=model, rows=bad, spec=spec)
