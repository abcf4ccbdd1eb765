"""Stock transformers loads a checkpoint, with this package and without it, each time in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import apply_renamings

import quant_experts  # noqa: F401 -- registers the method
from quant_experts.calibration.collate import open_collator
from quant_experts.calibration.rows import parse_row
from quant_experts.checkpoint.verify import TOLERANCE, Probe, verify_in_fresh_process
from quant_experts.errors import InvalidCheckpoint
from quant_experts.forward.modeling_quant_experts import QuantExpertsConfig, QuantExpertsQuantizer, kernel_rows
from tests.every_type.tiny import tiny_config
from tests.kernels import PROJECT, built
from tests.models import FAMILIES, VISION_FAMILIES
from tests.quant_experts.checkpoints import Parts, quantized_parts, written
from tests.rows import image_row

HIDDEN = "sys.modules['quant_experts'] = None\n"
IMPORTED = "import quant_experts\n"


@dataclass(frozen=True)
class Written:
    parts: Parts
    directory: Path
    inputs: dict[str, Tensor]
    logits: Tensor


def ask(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits.float()


def image_inputs(model: Any) -> dict[str, Tensor]:
    """Two rows, the first padded on the left, each with one picture of 2 by 2 merged patches."""
    config = model.config
    vision = config.vision_config
    merge = vision.spatial_merge_size
    grid = torch.tensor([[1, 2 * merge, 2 * merge]] * 2)
    picture = [config.vision_start_token_id, *[config.image_token_id] * 4, config.vision_end_token_id]
    rows = [[0, 0, 0, *picture, 300, 301, 302], [*picture, 400, 401, 402, 403, 404, 405]]
    ids = torch.tensor(rows)
    width = vision.temporal_patch_size * vision.patch_size**2 * 3
    pixels = torch.randn(2 * 4 * merge**2, width, generator=torch.Generator().manual_seed(5))
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * 3 + [1] * 9, [1] * 12]),
        "pixel_values": pixels.to(model.dtype),
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
    }


@pytest.fixture(autouse=True)
def formula(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models load with the formula that quantized them, so that equal logits are equal to the bit."""
    monkeypatch.setenv("QE_KERNELS", "reference")
    kernel_rows.cache_clear()
    yield
    kernel_rows.cache_clear()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Written:
    directory = tmp_path_factory.mktemp("loading")
    parts = quantized_parts("qwen2_vl", directory)
    inputs = image_inputs(parts.model)
    return Written(parts, written(parts, directory / "out"), inputs, ask(parts.model, inputs))


def kernels_project() -> list[Path]:
    """The folder from which the package of kernels is importable; empty where there is no compiler for it."""
    return [PROJECT] if built() else []


def in_fresh_process(code: str, *arguments: Path, modules: Path, kernels: str = "reference") -> dict[str, Any]:
    """Run ``code`` and return the JSON object on its last line."""
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules)}
    done = subprocess.run(
        [sys.executable, "-c", "import json, sys, torch\n" + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1", "QE_KERNELS": kernels},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@pytest.mark.parametrize("package", [IMPORTED, HIDDEN], ids=["with the package", "with nothing but transformers"])
def test_both_ways_give_the_same_logits_and_generate(checkpoint: Written, tmp_path: Path, package: str) -> None:
    save_file(checkpoint.inputs, str(tmp_path / "inputs.safetensors"))
    answer = in_fresh_process(
        package
        + """
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
trust = {"trust_remote_code": True} if sys.modules["quant_experts"] is None else {}
model, loading = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True, **trust)
inputs = load_file(sys.argv[2])
with torch.no_grad():
    logits = model(**inputs, use_cache=False).logits.float()
    cached = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    plain = model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=False)
save_file({"logits": logits}, sys.argv[3])
print(json.dumps({
    "left": {kind: sorted(map(str, names)) for kind, names in loading.items() if names},
    "class": type(model).__module__, "dtype": str(model.dtype), "new": cached.shape[1] - inputs["input_ids"].shape[1],
    "same": torch.equal(cached, plain), "training": model.training,
}))
""",
        checkpoint.directory,
        tmp_path / "inputs.safetensors",
        tmp_path / "logits.safetensors",
        modules=tmp_path,
    )
    assert answer == {
        "left": {},
        "class": "transformers.models.qwen2_vl.modeling_qwen2_vl",
        "dtype": "torch.bfloat16",
        "new": 5,
        "same": True,
        "training": False,
    }
    assert torch.equal(load_file(str(tmp_path / "logits.safetensors"))["logits"], checkpoint.logits)


def test_importing_transformers_first_or_loading_both_ways_in_one_process_works_too(
    checkpoint: Written, tmp_path: Path
) -> None:
    answer = in_fresh_process(
        """
import transformers.modeling_utils
import quant_experts
from transformers import AutoModelForImageTextToText as Auto
ids = torch.arange(10, 20)[None]
one = Auto.from_pretrained(sys.argv[1])(input_ids=ids).logits
two = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)(input_ids=ids).logits
print(json.dumps({"same": torch.equal(one, two)}))
""",
        checkpoint.directory,
        modules=tmp_path,
    )
    assert answer == {"same": True}


def test_a_process_that_does_not_know_the_method_gets_an_error_and_no_model(
    checkpoint: Written, tmp_path: Path
) -> None:
    answer = in_fresh_process(
        HIDDEN
        + """
from transformers import AutoModel, AutoModelForImageTextToText, Qwen2VLForConditionalGeneration
said = []
for kind in (AutoModelForImageTextToText, AutoModel, Qwen2VLForConditionalGeneration):
    try:
        kind.from_pretrained(sys.argv[1])
        said.append("loaded")
    except RuntimeError as error:
        said.append(str(error))
print(json.dumps({"said": sorted(set(said))}))
""",
        checkpoint.directory,
        modules=tmp_path,
    )
    assert [said.split(",")[0] for said in answer["said"]] == ["You set `ignore_mismatched_sizes` to `False`"]


def test_a_checkpoint_without_the_empty_tensors_of_an_earlier_build_still_loads(
    checkpoint: Written, tmp_path: Path
) -> None:
    earlier = Path(shutil.copytree(checkpoint.directory, tmp_path / "earlier"))
    shard = earlier / "model-00001-of-00001.safetensors"
    kept = {name: tensor for name, tensor in load_file(str(shard)).items() if tensor.numel()}
    save_file(kept, str(shard), metadata={"format": "pt"})
    model, loading = AutoModelForImageTextToText.from_pretrained(earlier, output_loading_info=True)
    assert not any(loading.values())
    assert torch.equal(ask(model, checkpoint.inputs), checkpoint.logits)


def test_loading_a_checkpoint_leaves_base_models_of_the_same_process_alone(checkpoint: Written, tmp_path: Path) -> None:
    source = checkpoint.parts.arguments["source"]
    assert "model.layers.0.mlp.up_proj.weight" in load_file(str(source / "model.safetensors"))  # an old key name
    answer = in_fresh_process(
        HIDDEN
        + """
from transformers import AutoModelForImageTextToText as Auto
ids = torch.arange(10, 20)[None]
def base(**options):
    model, loading = Auto.from_pretrained(sys.argv[2], output_loading_info=True, **options)
    return type(model), model.generate(input_ids=ids, max_new_tokens=8, do_sample=False).tolist(), any(loading.values())
before = base()
ours = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)
after = [base(), base(trust_remote_code=True)]
print(json.dumps({"same": [each == before for each in after], "left": before[2], "type": type(ours) is before[0]}))
""",
        checkpoint.directory,
        source,
        modules=tmp_path,
    )
    assert answer == {"same": [True, True], "left": False, "type": True}


@pytest.mark.skipif(not kernel_rows(), reason="this processor has no packed int4 product")
def test_a_loaded_model_multiplies_packed_integers_without_being_asked(checkpoint: Written, tmp_path: Path) -> None:
    """By torch, and by the package of kernels as soon as it is importable."""
    save_file({**checkpoint.inputs, "logits": checkpoint.logits}, str(tmp_path / "probe.safetensors"))
    answers: Any = in_fresh_process(
        HIDDEN
        + """
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText as Auto
inputs = load_file(sys.argv[2])
right = inputs.pop("logits")
def measured():
    model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)
    bytes_before = model.get_memory_footprint()
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits.float()
        generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    return layer, {"error": float((logits - right).norm() / right.norm()), "packed": layer.weight_packed is not None,
                   "integers": type(layer.integers).__name__, "new": generated.shape[1] - inputs["input_ids"].shape[1],
                   "grown": model.get_memory_footprint() / bytes_before}
layer, first = measured()
found = [first]
if len(sys.argv) > 3:
    sys.path.insert(0, sys.argv[3])
    sys.modules[type(layer).__module__].kernels.cache_clear()
    found.append(measured()[1])
print(json.dumps(found))
""",
        checkpoint.directory,
        tmp_path / "probe.safetensors",
        *kernels_project(),
        modules=tmp_path,
        kernels="auto",
    )
    for answer, integers in zip(answers, ("CpuIntegers", "PackedLinear"), strict=False):
        assert answer["error"] < TOLERANCE
        assert (answer["packed"], answer["integers"], answer["new"]) == (False, integers, 5)
        assert answer["grown"] < 1.1


def test_the_dtype_asked_for_is_the_dtype_that_runs(checkpoint: Written, tmp_path: Path) -> None:
    answer = in_fresh_process(
        HIDDEN
        + """
from transformers import AutoModelForImageTextToText as Auto
from collections import Counter
model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)
kinds = Counter(str(p.dtype) for n, p in model.named_parameters())
layer = model.model.language_model.layers[0].self_attn
print(json.dumps({"kinds": sorted(kinds), "scale": str(layer.q_proj.weight_scale.dtype),
                  "shared_up": str(layer.q_proj.shared_up.dtype), "router": str(layer.qkv_input_group.router.dtype),
                  "logits": str(model(input_ids=torch.arange(10, 20)[None]).logits.dtype)}))
""",
        checkpoint.directory,
        modules=tmp_path,
    )
    assert answer == {
        "kinds": ["torch.bfloat16", "torch.float32", "torch.int32", "torch.int64"],
        "scale": "torch.float32",
        "shared_up": "torch.bfloat16",  # as it is stored: half the memory
        "router": "torch.bfloat16",
        "logits": "torch.float32",
    }


def test_the_body_without_its_head_is_refused_because_transformers_would_leave_the_vision_tower_random(
    checkpoint: Written,
) -> None:
    with pytest.raises(ValueError, match="Qwen2VLForConditionalGeneration, not as a Qwen2VLModel"):
        AutoModel.from_pretrained(checkpoint.directory)


def test_saving_a_loaded_model_is_refused_instead_of_writing_names_that_do_not_load(
    checkpoint: Written, tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.directory)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_newer_format_and_lost_tensors_are_errors_and_not_random_layers(checkpoint: Written, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(checkpoint.directory, tmp_path / "newer"))
    config = json.loads((newer / "config.json").read_text())
    config["quantization_config"]["format"] = 4
    (newer / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="format 4, this loader reads formats up to 3"):
        AutoModelForImageTextToText.from_pretrained(newer)

    config["quantization_config"] |= {"format": 1, "groups": []}
    (newer / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lists no groups"):
        AutoModelForImageTextToText.from_pretrained(newer)
    groups = json.loads((checkpoint.directory / "config.json").read_text())["quantization_config"]["groups"]
    without_rank = {name: value for name, value in groups[1].items() if name != "shared_rank"}
    for damaged, said in ((without_rank, "KeyError: 'shared_rank'"), ({**groups[1], "group_size": 0}, "ZeroDivision")):
        config["quantization_config"]["groups"] = [groups[0], damaged]
        (newer / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"group of quantization_config is damaged .{said}"):
            AutoModelForImageTextToText.from_pretrained(newer)

    lossy = Path(shutil.copytree(checkpoint.directory, tmp_path / "lossy"))
    shard = lossy / "model-00001-of-00001.safetensors"
    tensors = load_file(str(shard))
    for lost, said in {
        "layers.1.self_attn.q_proj": "q_proj: its tensors are missing",
        "layers.1.self_attn.q_proj.routed_up": r"q_proj\.routed_up: the tensor is missing",
        "layers.0.mlp.down_input_group": r"down_input_group\.smooth: the tensor is missing",
        "layers.0.mlp.down_input_group.router": r"down_input_group\.router: the tensor is missing",
        "layers.1.self_attn.k_proj.bias": r"k_proj\.bias: the tensor is missing",
    }.items():
        kept = {name: tensor for name, tensor in tensors.items() if lost not in name}
        save_file(kept, str(shard), metadata={"format": "pt"})
        with pytest.raises(ValueError, match=said):
            AutoModelForImageTextToText.from_pretrained(lossy)


def test_wrong_logits_fail_the_proof_with_the_size_of_the_error(checkpoint: Written) -> None:
    shifted = checkpoint.logits + 0.5 * checkpoint.logits.std() * torch.randn_like(checkpoint.logits)
    with pytest.raises(InvalidCheckpoint, match=r"logits are 0\.\d+ off"):
        verify_in_fresh_process(checkpoint.directory, Probe(checkpoint.inputs, shifted))


def test_a_tensor_that_the_checkpoint_lacks_fails_the_proof_by_name(checkpoint: Written, tmp_path: Path) -> None:
    lossy = Path(shutil.copytree(checkpoint.directory, tmp_path / "lossy"))
    shard = lossy / "model-00001-of-00001.safetensors"
    tensors = load_file(str(shard))
    del tensors["model.language_model.norm.weight"]
    save_file(tensors, str(shard), metadata={"format": "pt"})
    with pytest.raises(InvalidCheckpoint, match=r"missing_keys: model\.language_model\.norm\.weight"):
        verify_in_fresh_process(lossy)


def test_logits_that_are_not_finite_fail_the_proof(checkpoint: Written, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(checkpoint.directory, tmp_path / "broken"))
    shard = broken / "model-00001-of-00001.safetensors"
    tensors = load_file(str(shard))
    tensors["model.language_model.layers.0.mlp.down_proj.weight_scale"][0, 0] = float("nan")
    save_file(tensors, str(shard), metadata={"format": "pt"})
    with pytest.raises(InvalidCheckpoint, match="not finite"):
        verify_in_fresh_process(broken)


def inputs_of(family: str, parts: Parts) -> dict[str, Tensor]:
    if family.startswith("qwen") and family in VISION_FAMILIES:
        return image_inputs(parts.model)
    if family in VISION_FAMILIES:
        source = parts.arguments["source"]
        return open_collator(source, parts.model.config)(parse_row(1, image_row(1), source)).inputs
    return {"input_ids": torch.arange(20, 60).view(2, 20)}


@pytest.mark.parametrize(
    ("family", "tied", "dtype"),
    [
        (family, family in {"qwen2", "qwen3_vl", "gemma3", "gemma2", "opt"}, torch.bfloat16)
        for family in FAMILIES
        if family != "qwen2_vl"
    ]
    + [("qwen2_vl", True, torch.float16), ("llama", False, torch.float32)],
)
def test_every_family_loads_whole_and_equals_the_model_in_memory(
    tmp_path: Path, family: str, tied: bool, dtype: torch.dtype
) -> None:
    parts = quantized_parts(family, tmp_path, tied=tied, dtype=dtype)
    logits = ask(parts.model, inputs := inputs_of(family, parts))
    auto_class = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    loaded, loading = auto_class.from_pretrained(written(parts, tmp_path / "out"), output_loading_info=True)
    assert not any(loading.values())
    assert loaded.dtype == dtype
    assert torch.equal(ask(loaded, inputs), logits)
    stored = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            stored |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 -- no mapping
    adapters = [n for n in stored if n.endswith(("shared_up", "shared_down", "routed_up", "routed_down", "router"))]
    kinds = {torch.bfloat16: "BF16", torch.float16: "F16"}
    tensors = dict(loaded.named_parameters())
    assert adapters
    found = {kinds.get(tensor.dtype) for name, tensor in tensors.items() if "shared_" in name or "routed_" in name}
    assert found == {stored[name] for name in adapters}


@pytest.mark.parametrize(
    ("kind", "auto"), [("laguna", AutoModelForCausalLM), ("mistral_large4", AutoModelForImageTextToText)]
)
def test_names_as_they_are_in_memory_are_not_renamed_while_they_are_read(kind: str, auto: Any) -> None:
    with torch.device("meta"):
        model = auto.from_config(tiny_config(kind))
    plain = get_model_conversion_mapping(model)
    quantizer = QuantExpertsQuantizer(QuantExpertsConfig(groups=[]), pre_quantized=True)
    quantizer._process_model_before_weight_loading(model)

    def renamed(conversions: list[Any]) -> list[str]:
        kept = [each for each in conversions if not hasattr(each, "operations")]
        return [name for name in model.state_dict() if apply_renamings(name, kept) != name]

    assert renamed(plain)
    assert not renamed(get_model_conversion_mapping(model, hf_quantizer=quantizer))


def test_a_text_model_loads_with_nothing_but_transformers(tmp_path: Path) -> None:
    parts = quantized_parts("qwen3", tmp_path, tied=True)
    inputs = {"input_ids": torch.arange(20, 60).view(2, 20)}
    probe = Probe(inputs, ask(parts.model, inputs))
    assert verify_in_fresh_process(written(parts, tmp_path / "out"), probe).error == 0.0
