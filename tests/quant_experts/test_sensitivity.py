"""Sensitivity measured block by block is what the whole model, all at once, would say."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant_experts.calibration.captured_inputs import CapturedRow
from quant_experts.errors import InvalidCalibration, NumericalFailure, Stopped
from quant_experts.fit.problem import EQUAL_WEIGHTS
from quant_experts.fit.quantizer import quantize, round_tokens
from quant_experts.forward.modeling_quant_experts import dequantize
from quant_experts.model.block_runner import open_block_runner
from quant_experts.model.blueprint import load, open_blueprint
from quant_experts.progress import Advanced, Event
from quant_experts.sensitivity import rows as few
from quant_experts.sensitivity.gradients import SMALLEST
from quant_experts.sensitivity.measurements import SensitivityMeasurements
from quant_experts.sensitivity.rows import few_rows
from quant_experts.spec.specification import QuantizationSpec
from tests.quant_experts.measuring import CPU, measuring
from tests.rows import image_row, text_row

SPEC = QuantizationSpec.preset("mbq", scheme="W3A6", group_size=32)


class Whole:
    """The model of a measurement with all its weights in memory, run in one piece."""

    def __init__(self, of: SensitivityMeasurements) -> None:
        self.blueprint = open_blueprint(of.context.blueprint.directory, device=CPU)
        for name, _ in self.blueprint.model.named_children():
            load(self.blueprint, name)
        self.inputs = of.inputs

    def logits(self, row: CapturedRow, embeddings: Tensor | None = None) -> Tensor:
        """(positions whose next token is text, vocabulary) float32."""
        hidden = self.inputs.embeddings(row) if embeddings is None else embeddings
        model = self.blueprint.language_model
        arguments = {**self.inputs.arguments(row, CPU), "inputs_embeds": hidden}
        output = model(**arguments, use_cache=False).last_hidden_state
        return self.blueprint.logits(output)[0, :-1][~self.inputs.vision(row)[1:]].float()

    def layers(self, parent: str, names: tuple[str, ...]) -> list[Any]:
        return [self.blueprint.model.get_submodule(f"{parent}.{name}") for name in names]


def test_a_groups_kl_and_moments_are_those_of_the_whole_model(tmp_path: Path) -> None:
    # Qwen3-VL adds vision features between its blocks.
    of = measuring(tmp_path, "qwen3_vl", blocks=3)
    measured = of.sensitivity(SPEC)
    whole, rows = Whole(of), few_rows(of.inputs, SPEC.seed)
    assert any(row.tokens_vision for row in rows)
    for plan in (of.context.plans[0][0], of.context.plans[1][3], of.context.plans[2][1]):
        seen: list[Tensor] = []
        layers = whole.layers(plan.parent, plan.layers)
        watch = layers[0].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].double()))
        with torch.no_grad():
            before = [whole.logits(row).log_softmax(-1) for row in rows]
        watch.remove()
        for layer in layers:
            layer.register_forward_pre_hook(lambda module, args: (round_tokens(args[0], 6),))
            codes, scales = quantize(layer.weight, 3, 32, layer.weight.dtype)
            layer.weight = nn.Parameter(
                dequantize(codes, scales, torch.float32).to(layer.weight.dtype), requires_grad=False
            )
        with torch.no_grad():
            after = [whole.logits(row).log_softmax(-1) for row in rows]
        whole = Whole(of)
        p, q = torch.cat(before), torch.cat(after)
        x = torch.cat([values.flatten() for values in seen])
        assert measured[plan.name].kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
        assert measured[plan.name].mean_abs == pytest.approx(float(x.abs().mean()), rel=1e-9)
        assert measured[plan.name].variance == pytest.approx(float(x.var(correction=0)), rel=1e-9)


def test_modality_weights_are_gradients_of_the_whole_models_loss(tmp_path: Path) -> None:
    of = measuring(tmp_path, "qwen3_vl", blocks=3, dtype=torch.float32)
    measured = of.modality_weights(SPEC)
    whole = Whole(of)
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in measured}
    counts = [0, 0]
    for row in few_rows(of.inputs, SPEC.seed):
        vision = of.inputs.vision(row)
        outputs: dict[str, list[Tensor]] = {name: [] for name in measured}
        hooks = []
        for plan in (plan for block in of.context.plans for plan in block):
            for layer in whole.layers(plan.parent, plan.layers):
                keep = outputs[plan.name].append
                hooks.append(layer.register_forward_hook(lambda module, args, output, keep=keep: keep(output)))
        logits = whole.logits(row, of.inputs.embeddings(row).requires_grad_())
        targets = of.inputs.input_ids(row)[1:][~vision[1:]]
        wanted = [output for of_group in outputs.values() for output in of_group]
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
        gradients = iter(torch.autograd.grad(loss, wanted))
        for name, of_group in outputs.items():
            stacked = torch.cat([next(gradients)[0].abs() for _ in of_group], dim=-1)
            for modality, mask in enumerate((vision, ~vision)):
                sums[name][modality] += float(stacked[mask].sum()) / stacked.shape[-1]
        counts = [counts[0] + int(vision.sum()), counts[1] + int((~vision).sum())]
        for hook in hooks:
            hook.remove()
    assert min(counts) > 0
    for name, weights in measured.items():
        means = [total / count for total, count in zip(sums[name], counts, strict=True)]
        expected = [max(mean / max(means), SMALLEST) for mean in means]
        assert [weights.vision, weights.text] == pytest.approx(expected, rel=1e-4), name
        assert max(weights.vision, weights.text) == 1.0
    last = measured[of.context.plans[-1][3].name]
    assert last.vision < 0.5  # behind the last attention hardly an image token is looked at


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_modality_weights_are_the_same_when_the_tower_is_walked_block_by_block(family: str, tmp_path: Path) -> None:
    kept = measuring(tmp_path / "kept", family, blocks=1).modality_weights(SPEC)
    of = measuring(tmp_path / "walked", family, blocks=1, vision="quantize")
    assert of.modality_weights(SPEC) == kept
    assert len(set(kept.values())) > 1
    assert set(kept) < {plan.name for block in of.context.plans for plan in block}  # a tower has nothing to balance
    assert not (of.context.work / ".last-stack").exists()
    assert all(
        parameter.is_meta for parameter in of.context.blueprint.module(of.context.plans[0][0].stack).parameters()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_survive_a_16_bit_model(dtype: torch.dtype, tmp_path: Path) -> None:
    exact = measuring(tmp_path / "float32", "qwen2_vl", dtype=torch.float32).modality_weights(SPEC)
    rounded = measuring(tmp_path / "rounded", "qwen2_vl", dtype=dtype).modality_weights(SPEC)
    for name, weights in exact.items():
        assert rounded[name].vision == pytest.approx(weights.vision, rel=0.03)
        assert rounded[name].text == pytest.approx(weights.text, rel=0.03)


def test_a_model_without_images_weighs_both_modalities_alike(tmp_path: Path) -> None:
    assert set(measuring(tmp_path, "llama").modality_weights(SPEC).values()) == {EQUAL_WEIGHTS}


def test_more_bits_leave_less_change(tmp_path: Path) -> None:
    of = measuring(tmp_path, "llama")
    coarse, fine = of.sensitivity(SPEC), of.sensitivity(SPEC.model_copy(update={"scheme": "W8A8"}))
    assert all(coarse[name].kl > 10 * fine[name].kl >= 0 for name in coarse)


def test_measuring_leaves_the_model_as_empty_as_it_was_and_no_states(tmp_path: Path) -> None:
    of = measuring(tmp_path, "qwen2_vl")
    of.sensitivity(SPEC)
    of.modality_weights(SPEC)
    assert all(parameter.is_meta for parameter in of.context.blueprint.language_model.layers.parameters())
    assert sorted(of.files) == ["gradients.json", "sensitivity-W3A6.json"]
    left = {path.name for path in of.context.work.iterdir()} - set(of.files)
    assert left == {"blocks", "chain", "calls.json", "calls.safetensors", "fingerprint.json"}


def test_what_was_measured_is_taken_over_bit_for_bit(tmp_path: Path) -> None:
    first = measuring(tmp_path, "qwen2_vl")
    events: list[Event] = []
    again = SensitivityMeasurements(replace(first.context, on_event=events.append), first.inputs)
    assert (first.sensitivity(SPEC), first.modality_weights(SPEC)) == (
        again.sensitivity(SPEC),
        again.modality_weights(SPEC),
    )
    assert events == []
    assert again.files == first.files
    other = SensitivityMeasurements(replace(first.context, fingerprint="other", on_event=events.append), first.inputs)
    other.sensitivity(SPEC)
    assert [(event.done, event.total) for event in events if isinstance(event, Advanced)] == [(1, 3), (2, 3), (3, 3)]


def test_stopping_while_measuring_leaves_no_half_record(tmp_path: Path) -> None:
    stop = threading.Event()
    of = measuring(tmp_path, "llama", on_event=lambda event: stop.set(), should_stop=stop.is_set)
    for measure in (of.sensitivity, of.modality_weights):
        stop.clear()
        with pytest.raises(Stopped):
            measure(SPEC)
    assert not list(of.context.work.glob("*sensitivity*"))
    assert not list(of.context.work.glob("*gradients*"))


def test_few_rows_are_whole_seeded_and_see_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*(text_row(i) for i in range(11)), image_row(11), image_row(12), image_row(13)]
    of = measuring(tmp_path, "qwen2_vl", rows=rows)
    chosen = few_rows(of.inputs, 0)
    assert len(chosen) == few.ROWS
    assert few_rows(of.inputs, 0) == chosen
    assert any(few_rows(of.inputs, seed) != chosen for seed in range(1, 4))
    assert not any(row.held_out for row in chosen)
    for seed in range(5):
        assert any(row.tokens_vision for row in few_rows(of.inputs, seed))
    monkeypatch.setattr(few, "TOKENS", 1)
    assert len(few_rows(of.inputs, 0)) == 1


def test_a_model_that_overflows_names_the_group(tmp_path: Path) -> None:
    of = measuring(tmp_path, "llama", dtype=torch.float16)
    read = of.context.blueprint.weights.read
    huge = "model.layers.0.mlp.up_proj.weight"
    of.context.blueprint.weights.read = lambda name: read(name).fill_(60000.0) if name == huge else read(name)  # type: ignore[method-assign]
    with pytest.raises(NumericalFailure, match=r"layers\.0\.mlp\.down: its input is not finite"):
        of.sensitivity(SPEC)


def test_rows_without_text_are_refused(tmp_path: Path) -> None:
    of = measuring(tmp_path, "llama")
    of.inputs.tensors.read = lambda name: torch.ones(9, dtype=torch.bool)  # type: ignore[method-assign]
    with pytest.raises(InvalidCalibration, match="no calibration row has two text tokens"):
        few_rows(of.inputs, 0)


def test_a_recorded_block_and_a_plain_one_give_the_same_output(tmp_path: Path) -> None:
    of = measuring(tmp_path, "qwen3_vl")
    row, blueprint = of.inputs.rows[-1], of.context.blueprint
    load(blueprint, "model.language_model.layers.0")
    hidden = of.inputs.embeddings(row)
    with open_block_runner(blueprint.language_model, 0, blueprint.manifest.decoder) as runner:
        plain = runner.run(of.inputs.arguments(row, CPU), hidden)
        recorded = runner.run_with_gradients(of.inputs.arguments(row, CPU), hidden.clone().requires_grad_())
    assert torch.equal(plain, recorded)
    assert not plain.requires_grad
    assert recorded.requires_grad
