"""Mixtures of experts: a linear layer for each matrix of each expert, and tokens for experts that get few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GptOssConfig, Llama4TextConfig, MixtralConfig, PreTrainedConfig

from demo.model import make_tokenizer
from quant_experts.checkpoint.layout import join_members
from quant_experts.checkpoint.read import read_contents
from quant_experts.commands.inspect import command
from quant_experts.errors import InvalidSpec, UnsupportedModel
from quant_experts.export.source import open_source
from quant_experts.files import file_digest
from quant_experts.forward.modeling_quant_experts import (
    ROTATED_FORMAT,
    MixtureExperts,
    QuantExpertsConfig,
    QuantExpertsQuantizer,
    each_member,
    stacks_of,
    unstack,
)
from quant_experts.model.blueprint import load, open_blueprint
from quant_experts.model.groups import plan_groups
from quant_experts.model.manifest import manifest_of
from quant_experts.model.mixtures import unstack_mixtures
from quant_experts.planning import slices
from quant_experts.planning.layer_rules import is_of_mixture
from quant_experts.planning.local import read_local
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.shapes import shapes_of
from quant_experts.planning.sizes import size_of
from quant_experts.report.data import QualityReport
from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.lent_tokens import LEAST_HELD_OUT, LEAST_TOKENS, Lender
from tests.every_type.tiny import tiny_config
from tests.models import TEXT_TEMPLATE, draw
from tests.rows import text_row, write_rows

SMALL: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**SMALL),
    "biases, transposed, gates of its own": GptOssConfig(**SMALL, layer_types=["full_attention"]),
    "tokens of all experts in a row": Llama4TextConfig(**SMALL, intermediate_size_mlp=96, moe_layers=[0]),
    "experts that return what they get": tiny_config("longcat_flash"),
}
ENTRY: dict[str, Any] = {"parent": "model.layers.0.mlp.experts", "weight_bits": 4, "shared_rank": 3}


def drawn(config: PreTrainedConfig) -> Any:
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(3, 19).unsqueeze(0)).logits
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_experts_apart_compute_what_their_stacks_compute(name: str) -> None:
    model = drawn(CONFIGS[name])
    expected = logits(model)
    for path, module in list(model.named_modules()):
        if stacks_of(module) is None:
            continue
        stacks = {name: module.get_parameter(name).detach() for name in stacks_of(module) or ()}
        is_turned = stacks["down_proj"].shape[1:] == (96, 64)
        experts = unstack(model, path)
        for stack, weights in stacks.items():
            for number, weight in enumerate(weights[: len(experts)]):
                layer = experts.get_submodule(f"{stack}.{number}")
                layer.weight = nn.Parameter(weight.t() if is_turned else weight, requires_grad=False)
    assert any(isinstance(module, MixtureExperts) for module in model.modules())
    torch.testing.assert_close(logits(model), expected)


def test_each_matrix_of_each_expert_is_an_input_group_and_the_router_stays() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["mixtral"]).eval()
    unstack_mixtures(model)
    found = manifest_of(model)
    groups = [(parent, label, layers) for parent, label, layers in found.decoder.each[0] if parent == "mlp.experts"]
    assert groups[:2] == [
        ("mlp.experts", "gate_up_proj_0", ("gate_up_proj.0",)),
        ("mlp.experts", "down_proj_0", ("down_proj.0",)),
    ]
    assert len(groups) == 8
    assert "model.layers.*.mlp.gate" not in [layer for _, _, layers in found.decoder.each[0] for layer in layers]
    assert is_of_mixture("model.layers.0.mlp.experts", "down_proj.3")
    assert not is_of_mixture("model.layers.0.mlp.shared_experts", "down_proj")


def test_a_mixture_whose_forward_is_not_known_is_refused_by_the_parameter_that_holds_its_experts() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj, self.down_proj = nn.Parameter(torch.ones(4, 64, 64)), nn.Parameter(torch.ones(4, 64, 64))

        def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            return x @ self.gate_up_proj[0] @ self.down_proj[0]

    assert stacks_of(Unknown()) is None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["mixtral"]).eval()
        model.model.layers[0].mlp.experts = Unknown()
    unstack_mixtures(model)
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.\*\.mlp\.experts\.\w+ holds \d+% of the weights"):
        manifest_of(model)


def member(matrix: str, number: int, **other: Any) -> dict[str, Any]:
    label = f"{matrix}_{number}"
    return {**ENTRY, "name": f"{ENTRY['parent']}.{label}", "label": label, "layers": [f"{matrix}.{number}"], **other}


def test_entries_that_differ_in_the_expert_alone_are_one_in_the_configuration() -> None:
    dense = {**ENTRY, "parent": "model.layers.0.mlp", "name": "…mlp.down", "label": "down", "layers": ["down_proj"]}
    members = [member(matrix, number) for number in range(5) for matrix in ("gate_up_proj", "down_proj")]
    members[4] = member("gate_up_proj", 2, shared_rank=1)
    joined = join_members([dense, *members])
    assert [(each["label"], each.get("members")) for each in joined] == [
        ("down", None),
        ("gate_up_proj", [0, 2]),
        ("down_proj", [0, 5]),
        ("gate_up_proj", [2, 3]),
        ("gate_up_proj", [3, 5]),
    ]
    by_name = {each["name"]: each for each in each_member(joined)}
    assert by_name == {each["name"]: each for each in (dense, *members)}


def test_a_loader_of_a_later_format_is_asked_for_by_name() -> None:
    quantizer = QuantExpertsQuantizer(QuantExpertsConfig(format=ROTATED_FORMAT + 1, groups=[member("down_proj", 0)]))
    with pytest.raises(ValueError, match=r"Quant Experts format 4, this loader reads formats up to 3"):
        quantizer.validate_environment()


class Listening:
    """An input group's observer that counts."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.vision: Tensor | None = None
        self.held_out = self.lent = False
        self.own = self.own_held_out = 0
        self.seen: list[tuple[int, bool]] = []

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert self.vision is not None
        vision = self.vision if self.rows is None else self.vision[self.rows]
        assert len(vision) == len(args[0])
        self.seen.append((len(args[0]), self.lent))
        if self.held_out:
            self.own_held_out += 0 if self.lent else len(args[0])
        else:
            self.own += 0 if self.lent else len(args[0])


def test_an_expert_with_few_tokens_is_run_on_those_of_its_layer() -> None:
    model = drawn(CONFIGS["mixtral"])
    experts = unstack(model, "model.layers.0.mlp.experts")
    observers = {expert: [Listening(), Listening()] for expert in range(4)}
    lender = Lender("layer", experts, observers, seed=0)
    for expert, pair in observers.items():
        for matrix, listening in zip(("gate_up_proj", "down_proj"), pair, strict=True):
            experts.get_submodule(f"{matrix}.{expert}").register_forward_pre_hook(listening)
    x, chosen = torch.randn(600, 64), torch.zeros(600, 1, dtype=torch.int64)
    chosen[:7] = 1
    for held_out in (False, True):
        lender.vision, lender.held_out = torch.zeros(600, dtype=torch.bool), held_out
        for observer in (each for pair in observers.values() for each in pair):
            observer.vision, observer.held_out = lender.vision, held_out
        lender(experts, (x, chosen, torch.ones(600, 1)))
        with torch.no_grad():
            experts(x, chosen, torch.ones(600, 1))
    lender.lend()
    assert observers[0][1].seen == [(593, False), (593, False)]
    assert observers[1][1].seen == [(7, False), (7, False), (LEAST_TOKENS - 7, True), (LEAST_HELD_OUT - 7, True)]
    assert observers[2][0].seen == observers[2][1].seen == [(LEAST_TOKENS, True), (LEAST_HELD_OUT, True)]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixture") / "model"
    model = AutoModelForCausalLM.from_config(CONFIGS["mixtral"], dtype=torch.bfloat16)
    draw(model.to(torch.bfloat16), 0)
    model.save_pretrained(directory)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


def test_the_pieces_of_a_stack_are_read_from_files_that_hold_each_expert_alone(mixture: Path) -> None:
    with safe_open(mixture / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys() if ".experts.2." in name}  # noqa: SIM118
    blueprint = open_blueprint(mixture, device=torch.device("cpu"))
    load(blueprint, "model.layers.0")
    experts = blueprint.model.model.layers[0].mlp.experts
    gate, up, down = (next(t for n, t in stored.items() if n.endswith(f"{w}.weight")) for w in ("w1", "w3", "w2"))
    assert torch.equal(experts.gate_up_proj[2].weight, torch.cat([gate, up]))
    assert torch.equal(experts.down_proj[2].weight, down)
    assert "model.layers.0.mlp.experts.gate_up_proj" not in blueprint.weights.names
    assert blueprint.weights.bytes("model.layers.0.mlp.experts.down_proj.0.weight") == 2 * 64 * 96


def test_a_mixture_is_quantized_loaded_and_planned(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = QuantizationSpec.preset("qe-gptq", scheme="W4A8", samples=4, reservoir=128, shared_rank=4, group_size=32)
    rows = write_rows(tmp_path / "rows.jsonl", [text_row(i) for i in range(5)])
    out = tmp_path / "out"

    def run(output: Path) -> QualityReport:
        work = output.with_suffix(".work")
        return quantize(model=mixture, calibration=rows, output=output, spec=spec, work=work, device="cpu")

    report = run(out)
    monkeypatch.setattr(slices, "MOMENTS", 3 * 4 * (64**2 + 96**2))  # those of three of the four experts
    blueprint = open_blueprint(mixture, device=torch.device("cpu"))
    (block, *_) = plan_groups(blueprint.model, blueprint.manifest)
    assert [sum(group.of_mixture for group in part) for part in slices.slices_of(block)] == [6, 2]
    run(tmp_path / "sliced")
    for file in out.glob("*.safetensors"):
        assert file_digest(file) == file_digest(tmp_path / "sliced" / file.name)
    # A fresh process without this package has loaded it to the same logits: the run ends with that check.
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    members = {entry["label"]: entry["members"] for entry in config["groups"] if "members" in entry}
    assert (config["format"], members) == (ROTATED_FORMAT, {"gate_up_proj": [0, 4], "down_proj": [0, 4]})
    experts = [group for group in report.blocks[0].groups if group.tokens_routed is not None]
    assert len(experts) == 8
    seen = {group.tokens_borrowed for group in experts}
    assert 0 not in seen  # few rows: every expert was lent some
    assert None not in seen
    contents = read_contents(out)
    of_experts = [group for group in contents.groups if ".experts." in group.name]
    assert [group.experts for group in of_experts] == [0] * 8
    assert [group.shared_rank for group in of_experts] == [4] * 8
    with pytest.raises(InvalidSpec, match=r"model\.layers\.0\.mlp\.experts are experts of a mixture, which no export"):
        open_source(out)
    assert "The experts of its mixtures are quantized one by one" in (out / "README.md").read_text()
    assert any(warning.startswith("mixture: the routers sent fewer than 512") for warning in report.warnings)
    planned = size_of(shapes_of(read_local(mixture)), Recipe.of(**spec.model_dump()))
    assert report.size is not None
    assert planned.is_exact
    assert planned.bytes_after_most == report.size.bytes_after == contents.bytes
    console = CliRunner().invoke(command, [str(out)])
    assert "mlp.experts.gate_up_proj_*" in console.output
    of_model = CliRunner().invoke(command, ["--model", str(mixture)])
    assert "mlp.experts.down_proj_*: down_proj.* (96 → 64), 4 experts" in of_model.output
