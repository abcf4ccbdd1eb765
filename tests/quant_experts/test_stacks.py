"""Models of which more than one stack of blocks is walked: a vision tower, and a speech model's encoder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, WhisperForConditionalGeneration

import quant_experts  # noqa: F401 -- registers the method
from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow, read_captured_inputs
from quant_experts.commands.display.run_progress import RunProgress
from quant_experts.errors import InvalidCalibration, InvalidSpec, Stopped
from quant_experts.evaluation.next_token import evaluate, text_positions
from quant_experts.files import file_digest
from quant_experts.forward.modeling_quant_experts import InputGroup, QuantizedLinear
from quant_experts.model.blueprint import load, modules_around_blocks, open_blueprint
from quant_experts.model.groups import GroupPlan, plan_groups
from quant_experts.progress import Advanced, BlockFinished, Event, GroupFitted, PhaseStarted, Warned
from quant_experts.report.data import GroupReport, QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.sensitivity.rounding_change import rounded_group
from quant_experts.sensitivity.rows import few_rows
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.file_lifetimes import FileLifetimes
from quant_experts.walk.resume_files import HiddenStates, states_file
from tests.models import make_model
from tests.models_speech import audio_row
from tests.planned import check_planned_disk, disk_peaks
from tests.rows import image_row, text_row, write_rows

OPTIONS: dict[str, Any] = {
    "samples": 6,
    "experts": 2,
    "shared_rank": 4,
    "routed_rank": 4,
    "important_channels": 8,
    "group_size": 32,
    "reservoir": 128,
}
SPEC = QuantizationSpec.preset("qe", vision="quantize", **OPTIONS)


def run(directory: Path, model: Path, rows: Path, *, spec: QuantizationSpec = SPEC, **more: Any) -> QualityReport:
    return quantize(
        model=model,
        calibration=rows,
        output=directory / "out",
        spec=spec,
        work=directory / "work",
        device="cpu",
        **more,
    )


def rows_with_and_without_images(path: Path) -> Path:
    return write_rows(path, [(text_row if i in (2, 5) else image_row)(i) for i in range(8)])


def last_calls(work: Path, first: int) -> CapturedInputs:
    """Of the stack that begins with the walked block ``first``."""
    stem = f"calls-{first:05d}"
    inputs = read_captured_inputs(
        work, json.loads((work / f"{stem}.json").read_text())["fingerprint"], stem=stem, first=first
    )
    assert inputs is not None
    return inputs


def last_states(model: Any, model_inputs: dict[str, Tensor]) -> Tensor:
    """What the last block of the language model puts out when the whole model runs."""
    outputs: list[Tensor] = []
    hook = model.model.language_model.layers[-1].register_forward_hook(lambda _, args, output: outputs.append(output))
    with torch.no_grad():
        model(**model_inputs, use_cache=False)
    hook.remove()
    return outputs[0]


# --- The vision tower ----------------------------------------------------------------------------------------------


TRANSCRIBE = """
import json, sys
sys.modules["quant_experts"] = None  # any import of it now fails
import torch
from transformers import AutoModelForSpeechSeq2Seq, WhisperFeatureExtractor
model = AutoModelForSpeechSeq2Seq.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
sound = torch.sin(torch.arange(16000) / 7).numpy()
made = WhisperFeatureExtractor.from_pretrained(sys.argv[1])(sound, sampling_rate=16000, return_tensors="pt")
tokens = model.generate(made["input_features"].to(model.dtype), max_new_tokens=4, min_new_tokens=4, language="en",
                        task="transcribe", do_sample=False)
layers = sum(type(module).__name__ == "QuantizedLinear" for module in model.modules())
print(json.dumps({"quantized": layers, "tokens": tokens.shape[1]}))
"""


class Subject:
    """A tiny model, rows for it, and how it is to be quantized."""

    def __init__(
        self, directory: Path, family: str, *, method: str = "qe", options: dict[str, Any] | None = None, **model: Any
    ) -> None:
        self.directory = directory
        self.model = make_model(family, directory / "model", **model)
        rows = directory / "rows.jsonl"
        speaks = family == "whisper"
        self.rows = write_rows(rows, map(audio_row, range(8))) if speaks else rows_with_and_without_images(rows)
        vision = "keep" if speaks else "quantize"
        self.spec = QuantizationSpec.preset(method, **OPTIONS | {"vision": vision} | (options or {}))
        self.work, self.output = directory / "work", directory / "out"

    def plans(self) -> list[GroupPlan]:
        blueprint = open_blueprint(self.model, device=torch.device("cpu"))
        return list(chain.from_iterable(plan_groups(blueprint.model, blueprint.manifest, vision=self.spec.vision)))

    def fitted(self, number: int, warnings: list[str] | None = None) -> dict[str, GroupReport]:
        """Run as far as to so many groups; packing and its proof are most of a whole run."""
        groups: dict[str, GroupReport] = {}

        def on_event(event: Event) -> None:
            if isinstance(event, GroupFitted):
                groups[event.group.name] = event.group
            if isinstance(event, Warned) and warnings is not None:
                warnings.append(event.message)

        with pytest.raises(Stopped):
            run(
                *(self.directory, self.model, self.rows),
                spec=self.spec,
                on_event=on_event,
                should_stop=lambda: len(groups) >= number,
            )
        return groups


class Undisturbed(Subject):
    """One run from beginning to end."""

    def __init__(self, directory: Path, family: str, **more: Any) -> None:
        super().__init__(directory, family, **more)
        self.events: list[Event] = []
        self.report = run(directory, self.model, self.rows, spec=self.spec, on_event=self.events.append)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Two blocks, of which the first is read again."""
    return Undisturbed(tmp_path_factory.mktemp("tower"), "qwen3_vl", blocks=1)


def digests(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): file_digest(path) for path in sorted(directory.rglob("*.safetensors"))
    }


def fit_only(directory: Path, source: Undisturbed, *, stop_behind: int | None = None) -> list[int]:
    """Run up to packing, or to the end of block ``stop_behind``; returns the blocks that were taken over."""
    taken_over: list[int] = []
    stop = threading.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, BlockFinished) and event.resumed:
            taken_over.append(event.block)
        if isinstance(event, PhaseStarted) and event.phase == "evaluating":
            stop.set()
        if isinstance(event, BlockFinished) and event.block == stop_behind:
            stop.set()

    with pytest.raises(Stopped):
        run(directory, source.model, source.rows, spec=source.spec, on_event=on_event, should_stop=stop.is_set)
    return taken_over


def assert_both_streams_are_those_of_the_whole_models(source: Undisturbed) -> None:
    """Bit for bit: the language model sees what the quantized tower makes, its full stream what the original makes."""
    blocks = len(source.report.blocks)
    language = [block.block for block in source.report.blocks if block.stack == "language model"]
    inputs = last_calls(source.work, language[0])
    hidden = HiddenStates(source.work, inputs, blocks)
    row = inputs.held_out[0]
    model_inputs = inputs.probe(row)
    assert model_inputs is not None
    assert not torch.equal(hidden.read("full", row), hidden.read("quantized", row))
    for directory, state in ((source.output, hidden.read("quantized", row)), (source.model, hidden.read("full", row))):
        model = AutoModelForImageTextToText.from_pretrained(directory).eval()
        assert torch.equal(last_states(model, model_inputs), state)


def test_the_language_model_sees_what_the_quantized_tower_makes(tower: Undisturbed) -> None:
    assert_both_streams_are_those_of_the_whole_models(tower)


def test_it_does_so_in_qwen2_5_vl_when_modalities_are_balanced_in_the_language_model(tmp_path: Path) -> None:
    with disk_peaks(tmp_path) as peaks:
        source = Undisturbed(tmp_path, "qwen2_5_vl", options={"smoothing": "mbq"}, blocks=1)
    check_planned_disk(peaks, source.model, source.work, source.spec, phases={"gradients", "walking", "packing"})
    assert_both_streams_are_those_of_the_whole_models(source)
    groups = [group for block in source.report.blocks for group in block.groups]
    assert all(group.smoothing.startswith("mbq(") for group in groups)
    assert sum("every token of the vision tower is of an image" in text for text in source.report.warnings) == 1
    weights = json.loads((source.work / "gradients.json").read_text())["content"]
    assert set(weights) == {group.name for group in groups if "language_model" in group.name}


def test_it_does_so_in_internvl_with_a_budget_that_is_filled_over_all_stacks(tmp_path: Path) -> None:
    options = {"budget": {"bits_per_weight": 6.5}}
    source = Undisturbed(tmp_path, "internvl", method="rtn", options=options, blocks=1)
    assert_both_streams_are_those_of_the_whole_models(source)
    size, mixed = source.report.size, source.report.mixed_precision
    assert size is not None
    assert mixed is not None
    assert 5.5 < size.effective_bits <= 6.5
    assert [block.part for block in source.report.blocks if block.index is None] == ["projector"]
    assert "the vision tower with its projector have" in (source.output / "README.md").read_text()
    raised = {block.stack for block in source.report.blocks for group in block.groups if group.name in mixed.groups}
    assert raised == {"vision", "language model"}


def test_blocks_are_numbered_through_and_named_by_stack(tower: Undisturbed) -> None:
    named = [(block.block, block.stack, block.index) for block in tower.report.blocks]
    assert named == [(0, "vision", 0), (1, "vision", 1), (2, "vision", None), (3, "language model", 0)]
    assert [block.part for block in tower.report.blocks] == [None, None, "merger", None]
    merger = [group.name.removeprefix("model.visual.") for group in tower.report.blocks[2].groups]
    assert merger == [
        *("merger.fc1", "merger.fc2", "deepstack_merger_list.0.fc1", "deepstack_merger_list.1.fc1"),
        *("deepstack_merger_list.0.fc2", "deepstack_merger_list.1.fc2"),
    ]


def test_image_tokens_count_as_vision_and_rows_without_images_go_past_the_tower(tower: Undisturbed) -> None:
    first, _, merger, language = tower.report.blocks
    held_out = read_captured_inputs(tower.work, json.loads((tower.work / "calls.json").read_text())["fingerprint"])
    assert held_out is not None
    merged = sum(row.tokens_vision for row in held_out.held_out)
    for group in (*first.groups, *merger.groups):
        assert group.error_text is None
        assert group.error_vision == group.error
    assert {group.tokens for group in merger.groups} == {merged}
    assert {group.tokens for group in first.groups} == {4 * merged}  # two by two patches make one token
    assert {group.tokens for group in language.groups} == {sum(row.tokens for row in held_out.held_out)}


def test_the_warning_is_in_report_and_card_and_what_stays_is_said(tower: Undisturbed) -> None:
    assert sum("costs more accuracy than anything else" in warning for warning in tower.report.warnings) == 1
    card = (tower.output / "README.md").read_text()
    assert "costs more accuracy than anything else" in card
    assert "of the language model and of the vision tower with its merger have 4-bit weights" in card
    config = json.loads((tower.output / "config.json").read_text())
    assert config["quantization_config"]["ignored"] == [
        *("lm_head", "model.language_model.embed_tokens", "model.language_model.norm"),
        *("model.visual.patch_embed", "model.visual.pos_embed"),
    ]
    stored = load_file(tower.output / "model-00001-of-00001.safetensors")
    original = load_file(tower.model / "model.safetensors")
    assert torch.equal(stored["model.visual.patch_embed.proj.weight"], original["model.visual.patch_embed.proj.weight"])
    whole = {name for name, tensor in stored.items() if tensor.numel() and name.endswith(("fc1.weight", "qkv.weight"))}
    assert not [name for name in whole if "visual" in name]


# --- Stopping and going on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "depth"), [("qwen3_vl", 1), ("whisper", 2)])
def test_a_search_tries_all_stacks_together(family: str, depth: int, tmp_path: Path) -> None:
    """It sees all of these few rows, so that what it foretells is what the whole run comes to."""
    options = {"scheme": "auto", "target": {"max_kl": 0.1}}
    source = Subject(tmp_path, family, method="rtn", options=options, blocks=depth)
    plans = source.plans()
    blocks = len({plan.block for plan in plans})
    trials: list[Advanced] = []
    stop = threading.Event()

    def on_event(event: Event) -> None:
        # Calibration counts its rows, sensitivity its blocks and the head.
        if isinstance(event, Advanced) and event.total not in (source.spec.samples, blocks + 1):
            trials.append(event)
        if isinstance(event, PhaseStarted) and event.phase == "evaluating":
            stop.set()

    with pytest.raises(Stopped), disk_peaks(tmp_path) as peaks:
        run(tmp_path, source.model, source.rows, spec=source.spec, on_event=on_event, should_stop=stop.is_set)
    check_planned_disk(peaks, source.model, source.work, source.spec, phases={"sensitivity", "trials", "walking"})
    kl = json.loads((source.work / "auto.json").read_text())["content"]["kl"]
    assert 0 < min(kl.values()) < max(kl.values())
    assert [event.done for event in trials] == list(range(1, blocks * len(kl) + 1))
    language = next(plan.block for plan in plans if plan.stack == plans[-1].stack)
    inputs = last_calls(source.work, language)
    blueprint = open_blueprint(source.model, device=torch.device("cpu"))
    for name in modules_around_blocks(blueprint, blueprint.manifest.decoder):
        load(blueprint, name)
    quality, _ = evaluate(blueprint, inputs, source.work)
    assert quality.kl in kl.values()


@pytest.mark.parametrize("stop_behind", [0, 1, 2])
def test_a_run_that_stops_before_at_or_behind_the_border_ends_with_the_same_bytes(
    tower: Undisturbed, stop_behind: int, tmp_path: Path
) -> None:
    fit_only(tmp_path, tower, stop_behind=stop_behind)
    assert fit_only(tmp_path, tower) == list(range(stop_behind + 1))
    assert digests(tmp_path / "work") == digests(tower.work)


def test_the_progress_says_which_block_of_which_stack(tower: Undisturbed, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a group that was fitted as of a block that is finished, on a terminal and in a log."""
    place = {event.block: (event.stack, event.index) for event in tower.events if isinstance(event, BlockFinished)}
    fitted = [event for event in tower.events if isinstance(event, GroupFitted)]
    assert {event.block for event in fitted} == set(place)
    assert all((event.stack, event.index) == place[event.block] for event in fitted)
    with RunProgress() as display:
        for event in tower.events:
            display.on_event(event)
    told = [line.split(" · ")[:2] for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in told if line[0].endswith("blocks")]
    assert lines[0] == [f"1 of {len(place)} blocks", "vision block 0"]
    assert lines[-1][0] == f"{len(place)} of {len(place)} blocks"
    assert lines[-1][1].startswith("language model block ")
    assert [name for _, name in lines].count("vision merger") == 1


DAMAGES = {
    "the calls behind the border": ("calls-00003.safetensors", []),
    "the description of these calls": ("calls-00003.json", []),
    "the newest hidden states": ("chain/00003.safetensors", [0, 1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_walk_behind_the_border_needs_is_made_again_when_it_is_damaged(
    tower: Undisturbed, damage: str, tmp_path: Path
) -> None:
    name, taken_over = DAMAGES[damage]
    shutil.copytree(tower.work, tmp_path / "work")
    path = tmp_path / "work" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert fit_only(tmp_path, tower) == taken_over
    assert digests(tmp_path / "work") == digests(tower.work)


def test_states_that_are_read_again_stay_until_the_border_is_crossed(tower: Undisturbed, tmp_path: Path) -> None:
    blueprint = open_blueprint(tower.model, device=torch.device("cpu"))
    plans = plan_groups(blueprint.model, blueprint.manifest, vision="quantize")
    deep = SimpleNamespace(vision_config=SimpleNamespace(depth=4, deepstack_visual_indexes=[0, 3]))
    lifetimes = FileLifetimes.of([[replace(plans[0][0], block=n, index=n)] for n in range(4)] + plans[2:], deep)
    for number in range(4):
        (tmp_path / states_file(number)).parent.mkdir(exist_ok=True)
        (tmp_path / states_file(number)).touch()
    assert lifetimes.superseded(tmp_path, 3) == (states_file(1),)
    assert lifetimes.superseded(tmp_path, 4) == (states_file(1), states_file(2))
    assert set(lifetimes.superseded(tmp_path, 5)) == {states_file(number) for number in range(4)}


# --- An encoder ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("speech"), "whisper")


def test_the_decoder_reads_what_the_quantized_encoder_puts_out(speech: Undisturbed) -> None:
    inputs = last_calls(speech.work, 2)
    row = inputs.held_out[0]
    model_inputs = inputs.probe(row)
    assert model_inputs is not None
    assert model_inputs["input_features"].dtype == torch.bfloat16
    hidden = HiddenStates(speech.work, inputs, 4)
    for directory, state in ((speech.output, hidden.read("quantized", row)), (speech.model, hidden.read("full", row))):
        model = WhisperForConditionalGeneration.from_pretrained(directory).eval()
        with torch.no_grad():
            new = model.generate(model_inputs["input_features"], max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert new.shape[1] >= 4
        outputs: list[Tensor] = []
        model.model.decoder.layers[-1].register_forward_hook(lambda _, args, output, to=outputs: to.append(output))
        for module in model.modules():  # as the walk runs it: the integer product of a few tokens sums otherwise
            if isinstance(module, InputGroup | QuantizedLinear):
                module.accelerated = False
        with torch.no_grad():
            model(**model_inputs, use_cache=False)
        assert torch.equal(outputs[0], state)


def test_audio_and_text_are_counted_apart_and_a_key_layer_has_no_bias(speech: Undisturbed) -> None:
    report = speech.report
    assert [block.stack for block in report.blocks] == ["encoder", "encoder", "decoder", "decoder"]
    assert report.tokens_audio == report.rows_used * 100
    assert report.tokens_vision == 0
    for group in (group for block in report.blocks for group in block.groups):
        hears = "encoder_attn.kv" in group.name or "model.encoder" in group.name
        assert group.tokens == 200 if hears else group.tokens < 100
        assert group.error_vision is None
        assert (group.error_text is None) is hears
    stored = load_file(speech.output / "model-00001-of-00001.safetensors")
    biases = {name for name in stored if name.endswith("_proj.bias") and ".layers.0.encoder_attn." in name}
    assert biases == {f"model.decoder.layers.0.encoder_attn.{layer}_proj.bias" for layer in ("q", "v", "out")}
    card = (speech.output / "README.md").read_text()
    assert "pipeline_tag: automatic-speech-recognition" in card
    assert "AutoModelForSpeechSeq2Seq.from_pretrained" in card
    assert "linear layers of encoder and decoder have 4-bit weights" in card
    assert "vision" not in card


def test_a_speech_model_has_no_modalities_to_balance(tmp_path: Path) -> None:
    subject = Subject(tmp_path, "whisper", method="mbq", blocks=1)
    number = len(subject.plans())
    warnings: list[str] = []
    groups = subject.fitted(number, warnings)
    assert len(groups) == number
    assert all(group.smoothing.startswith("mbq(") for group in groups.values())
    assert sum("this model has no image tokens" in warning for warning in warnings) == 1
    assert not (subject.work / "gradients.json").exists()


@pytest.mark.parametrize("stop_behind", [1, 2])
def test_a_speech_run_that_stops_at_the_border_ends_with_the_same_bytes(
    speech: Undisturbed, stop_behind: int, tmp_path: Path
) -> None:
    fit_only(tmp_path, speech, stop_behind=stop_behind)
    assert fit_only(tmp_path, speech) == list(range(stop_behind + 1))
    assert digests(tmp_path / "work") == digests(speech.work)


def test_it_transcribes_where_nothing_but_transformers_is(speech: Undisturbed) -> None:
    done = subprocess.run([sys.executable, "-c", TRANSCRIBE, str(speech.output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["quantized"] == 2 * 6 + 2 * 10
    assert said["tokens"] >= 4


# --- What cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "gemma3", "llama"])
def test_a_tower_that_cannot_be_quantized_is_refused_with_those_that_can(family: str, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model")
    rows = rows_with_and_without_images(tmp_path / "rows.jsonl")
    with pytest.raises(InvalidSpec, match=r"it works for qwen2_vl, qwen2_5_vl, qwen3_vl, internvl$"):
        run(tmp_path, model, rows)
    assert not (tmp_path / "work/fingerprint.json").exists()


def test_a_tower_of_which_an_earlier_layer_is_taken_is_refused(tmp_path: Path) -> None:
    model = make_model("internvl", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -2}))
    with pytest.raises(InvalidSpec, match=r'takes the output of layer -2 of its vision tower.*give vision "keep"'):
        run(tmp_path, model, rows_with_and_without_images(tmp_path / "rows.jsonl"))


@torch.no_grad()
def kl_of_the_whole_model(source: Subject, group: str, inputs: CapturedInputs, rows: tuple[CapturedRow, ...]) -> float:
    """All of the model in memory, and one group of it rounded: mean KL over the positions whose next token is text."""
    blueprint = open_blueprint(source.model, device=torch.device("cpu"))
    for name, _ in blueprint.model.named_children():
        load(blueprint, name)
    plans = plan_groups(blueprint.model, blueprint.manifest, vision=source.spec.vision)
    plan = next(plan for block in plans for plan in block if plan.name == group)
    total, count = 0.0, 0
    for row in rows:
        model_inputs = inputs.probe(row)
        assert model_inputs is not None
        _, positions = text_positions(inputs, row, torch.device("cpu"))
        p = blueprint.model(**model_inputs, use_cache=False).logits[0, positions].float().log_softmax(-1)
        with rounded_group(blueprint, plan, source.spec):
            q = blueprint.model(**model_inputs, use_cache=False).logits[0, positions].float().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        count += len(positions)
    return max(total / count, 0.0)


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("qwen3_vl", ("visual.blocks.1.mlp.fc1", "deepstack_merger_list.0.fc2", "language_model.layers.0.mlp.down")),
        ("whisper", ("encoder.layers.0.fc2", "decoder.layers.0.encoder_attn.kv")),
    ],
)
def test_the_share_of_sensitive_groups_is_measured_through_all_stacks(
    family: str, groups: tuple[str, ...], tmp_path: Path
) -> None:
    """The measure is that of the whole model in memory, and groups of every stack compete."""
    options = {"sensitive": {"share": 0.4, "weight_bits": 8}}
    source = Subject(tmp_path, family, method="rtn", options=options, blocks=1)
    weights = {plan.name: plan.weights for plan in source.plans()}
    measured = source.fitted(len(weights))
    inputs = read_captured_inputs(source.work, json.loads((source.work / "calls.json").read_text())["fingerprint"])
    assert inputs is not None
    rows = few_rows(inputs, source.spec.seed)
    for group in groups:
        full_name = f"model.{group}" if f"model.{group}" in measured else f"model.visual.{group}"
        sensitivity = measured[full_name].sensitivity
        assert sensitivity is not None
        assert sensitivity.kl == pytest.approx(kl_of_the_whole_model(source, full_name, inputs, rows), rel=1e-4)
        assert sensitivity.kl > 0
    raised = [name for name, group in measured.items() if group.weight_bits == 8]
    assert 0 < sum(map(weights.__getitem__, raised)) <= 0.4 * sum(weights.values())
    assert not (source.work / ".sensitivity").exists()


def test_groups_of_the_tower_can_keep_more_bits_by_name(tmp_path: Path) -> None:
    options = {"sensitive": {"groups": ["attn.qkv"]}}
    fitted = Subject(tmp_path, "qwen3_vl", method="rtn", options=options, blocks=1).fitted(5)
    assert [fitted[f"model.visual.blocks.{n}.attn.qkv"].weight_bits for n in (0, 1)] == [8, 8]
    assert fitted["model.visual.blocks.0.mlp.fc1"].weight_bits == 4


def test_rows_without_any_image_are_refused(tower: Undisturbed, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [text_row(i) for i in range(5)])
    with pytest.raises(InvalidCalibration, match="vision is quantized, and no calibration row to fit it on has an im"):
        run(tmp_path, tower.model, rows)
