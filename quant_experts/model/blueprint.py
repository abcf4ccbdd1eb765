"""The model without its weights: built on the meta device; modules are loaded and unloaded one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from quant_experts.errors import InvalidModel, UnsupportedModel, one_line
from quant_experts.model.discovery import modules_to
from quant_experts.model.families.stack import Stack
from quant_experts.model.manifest import Manifest, auto_class_of, manifest_of, parts_but
from quant_experts.model.mixtures import straighten, unstack_mixtures
from quant_experts.model.put_out import putting_out
from quant_experts.model.shards import Shards, open_shards
from quant_experts.model.weights import Weights

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

CONFIGURATION_ERRORS = (
    StrictDataclassError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OSError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
)
"""What building a model from a senseless configuration was seen to raise."""


@dataclass(frozen=True)
class Blueprint:
    """A model whose parameters are on the meta device until ``load`` brings some of them in."""

    directory: Path
    config_text: str
    manifest: Manifest
    model: Any
    weights: Weights
    dtype: torch.dtype
    device: torch.device

    @property
    def language_model(self) -> Any:
        return self.model.get_submodule(self.manifest.language_model)

    def module(self, stack: Stack) -> Any:
        """The module whose forward runs the stack."""
        return self.model.get_submodule(stack.module)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (n, d) behind the last norm; returns (n, vocabulary), as the model makes them: the forward around the
        head runs, scales and caps included, with ``hidden`` in place of what the modules before the head put out."""
        outer = self.manifest.with_head
        with putting_out(self.model, modules_to(self.manifest.language_model, outer), hidden.unsqueeze(0)):
            tokens = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
            name = "decoder_input_ids" if self.manifest.encoder is not None else "input_ids"
            logits: Tensor = self.model.get_submodule(outer)(**{name: tokens}, use_cache=False).logits
        return logits.squeeze(0)

    @property
    def blocks(self) -> int:
        """Of the last stack."""
        return len(self.language_model.get_submodule(self.manifest.decoder.layers))


def read_config(directory: Path) -> tuple[str, dict[str, Any]]:
    """The text of config.json and its content. Raises InvalidModel when there is none or it is not JSON."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise InvalidModel(f"{directory} is not a directory; give a model directory as a hub repository has it")
    if not path.is_file():
        raise InvalidModel(f"{directory.name} has no config.json; give a model directory as a hub repository has it")
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{directory.name}/config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidModel(f"{directory.name}/config.json is not a JSON object")
    return text, config


def open_blueprint(directory: Path, *, device: torch.device) -> Blueprint:
    """Check a model directory and build its model without weights.

    Raises UnsupportedModel for another architecture, InvalidModel for everything that is wrong with the files.
    """
    text, config = read_config(directory)
    auto_class = auto_class_of(config)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "an unknown method")
        raise InvalidModel(f"{directory.name} is already quantized ({method}); give the model that it was made from")
    shards = open_shards(directory)
    model, dtype = _build(directory, auto_class, shards)
    stacks, transposed = unstack_mixtures(model), straighten(model)
    manifest = manifest_of(model)
    return Blueprint(directory, text, manifest, model, Weights(shards, model, stacks, transposed), dtype, device)


def _build(directory: Path, auto_class: str, shards: Shards) -> tuple[PreTrainedModel, torch.dtype]:
    kind = getattr(transformers, auto_class)
    try:
        # Never trust_remote_code: only the library's own classes run, whatever auto_map says.
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        dtype = _dtype(config, shards)
        with torch.device("meta"):
            model = kind.from_config(config, dtype=dtype, trust_remote_code=False)
        keep_wide(model, dtype)
    except ImportError as error:  # of a tower whose code is in another package, such as timm
        raise UnsupportedModel(f"{directory.name} cannot be built here: {one_line(error, 300)}") from error
    except CONFIGURATION_ERRORS as error:
        reason = one_line(error, 300)
        raise InvalidModel(f"{directory.name}/config.json does not describe a model: {reason}") from error
    model.eval().requires_grad_(False)
    return model, dtype


def keep_wide(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the tensors of a model on the meta device that its class keeps in float32 that dtype, as ``from_pretrained``
    does."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    wide = build_glob_alternation(list(plan))[0]
    for name in filter(wide.search, model.state_dict()):
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        tensors = module._parameters if last in module._parameters else module._buffers
        if tensors[last].is_floating_point():
            value = tensors[last].detach().float()
            tensors[last] = nn.Parameter(value, requires_grad=False) if tensors is module._parameters else value


def _dtype(config: Any, shards: Shards) -> torch.dtype:
    """What ``from_pretrained`` would choose: the configuration's dtype, else that of the first floating tensor."""
    config_dtype = config.dtype if config.dtype is not None else getattr(config.get_text_config(), "dtype", None)
    if isinstance(config_dtype, str):
        config_dtype = getattr(torch, config_dtype, None)
    if config_dtype is None:
        dtypes = (file.entries[key].dtype for key, file in shards.where.items())
        config_dtype = next((dtype for dtype in dtypes if dtype in FLOATS), None)
    if config_dtype not in FLOATS:
        raise InvalidModel(f"the model's dtype is {config_dtype}; supported are float32, float16 and bfloat16")
    return config_dtype


def load(blueprint: Blueprint, prefix: str) -> None:
    """Read every tensor of the module ``prefix`` onto the device; ``prefix`` may also name one parameter or buffer.

    Raises InvalidModel for one that is not finite.
    """
    if (own_tensor := _tensor(blueprint.model, prefix)) is not None:
        owner, name = own_tensor
        if name in owner._non_persistent_buffers_set:
            _compute_buffers(blueprint, prefix.rpartition(".")[0], owner)
            return
        tensor = blueprint.weights.read(prefix).to(blueprint.device)
        if name in owner._buffers:
            owner._buffers[name] = tensor
        else:
            owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        return
    _make_buffers(blueprint, prefix)  # before the parameters: initialising an embedding's scale draws its weights too
    module = blueprint.model.get_submodule(prefix)
    for owner_name, owner in module.named_modules(prefix=prefix):
        for name in list(owner._parameters):
            if owner._parameters[name] is not None:
                tensor = blueprint.weights.read(f"{owner_name}.{name}").to(blueprint.device)
                owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        for name in list(owner._buffers):
            if owner._buffers[name] is not None and name not in owner._non_persistent_buffers_set:
                owner._buffers[name] = blueprint.weights.read(f"{owner_name}.{name}").to(blueprint.device)
    blueprint.weights.release()
    missing = [name for name, tensor in _tensors(module) if tensor.is_meta]
    if missing:
        raise InvalidModel(f"{prefix}.{missing[0]} got no value; this version of transformers builds it differently")


def modules_around_blocks(blueprint: Blueprint, stack: Stack) -> list[str]:
    """Names of the modules that take part in every forward of the stack, whichever block runs.

    These are all but the blocks and the token embeddings, which are large: norms and rotary tables of a language model;
    patch embedding and merger of a tower.
    """
    without = {f"{stack.module}.{stack.layers}"}
    if not stack.runs_towers:
        without.add(f"{stack.module}.{stack.embedding}")
    return list(parts_but(blueprint.model, stack.module, without))


def unload(blueprint: Blueprint, prefix: str) -> None:
    """Drop the tensors of the module (or the parameter or buffer) ``prefix``: back to the meta device."""
    if (own_tensor := _tensor(blueprint.model, prefix)) is not None:
        owner, name = own_tensor
        if name in owner._buffers:
            owner._buffers[name] = owner._buffers[name].to("meta")
        else:
            owner._parameters[name] = nn.Parameter(owner._parameters[name].to("meta"), requires_grad=False)
        return
    blueprint.model.get_submodule(prefix).to("meta")


@contextmanager
def loaded(blueprint: Blueprint, *prefixes: str) -> Iterator[None]:
    """Hold the modules (or tensors) ``prefixes`` in memory while this is open. Raises as ``load`` does."""
    for prefix in prefixes:
        load(blueprint, prefix)
    try:
        yield
    finally:
        for prefix in prefixes:
            unload(blueprint, prefix)


def _tensor(model: nn.Module, path: str) -> tuple[Any, str] | None:
    """The module that owns the parameter or buffer ``path``, and its name in it; None when ``path`` is a module."""
    owner_name, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_name)
    return (owner, name) if name in owner._parameters or name in owner._buffers else None


def _make_buffers(blueprint: Blueprint, prefix: str) -> None:
    """Compute buffers that no file holds (rotary frequencies) by the model's own initialisation.

    They start as NaN (whole numbers, such as positions, as a negative), so that one which the initialisation does not
    know is found instead of used.
    """
    for owner_name, owner in blueprint.model.get_submodule(prefix).named_modules(prefix=prefix):
        _compute_buffers(blueprint, owner_name, owner)


def _compute_buffers(blueprint: Blueprint, owner_name: str, owner: Any) -> None:
    names = [name for name in owner._non_persistent_buffers_set if owner._buffers.get(name) is not None]
    names = [name for name in names if owner._buffers[name].is_meta]
    if not names:
        return
    for name in names:
        unknown = -1 if _is_whole(owner._buffers[name]) else float("nan")
        owner._buffers[name] = torch.full_like(owner._buffers[name], unknown, device="cpu")
    model = _enclosing_model(blueprint.model, owner_name)
    model._init_weights(owner)
    unmade = [name for name in names if not _has_values(owner._buffers[name])]
    if unmade and owner is not model:  # Falcon-H1's model makes a buffer of each of its blocks
        with _left_alone(model, [owner._buffers[name] for name in unmade]):
            model._init_weights(model)
    for name in names:
        if not _has_values(owner._buffers[name]):
            raise InvalidModel(
                f"{owner_name}.{name} cannot be computed; this version of transformers builds it differently"
            )
        owner._buffers[name] = owner._buffers[name].to(blueprint.device)


def _has_values(buffer: Tensor) -> bool:
    return bool((buffer >= 0 if _is_whole(buffer) else torch.isfinite(buffer)).all())


@contextmanager
def _left_alone(model: nn.Module, but: list[Tensor]) -> Iterator[None]:
    """While open, transformers initialises no tensor of ``model`` that is in memory, except those of ``but``."""
    kept: list[Any] = [
        tensor for _, tensor in _tensors(model) if not tensor.is_meta and all(tensor is not each for each in but)
    ]
    kept = [tensor for tensor in kept if not getattr(tensor, "_is_hf_initialized", False)]
    for tensor in kept:
        tensor._is_hf_initialized = True
    try:
        yield
    finally:
        for tensor in kept:
            del tensor._is_hf_initialized


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _enclosing_model(model: Any, name: str) -> Any:
    """The innermost PreTrainedModel around the module ``name``, or that module itself."""
    path = name.split(".")
    for length in range(len(path), -1, -1):
        candidate = model.get_submodule(".".join(path[:length]))
        if isinstance(candidate, PreTrainedModel):
            return candidate
    raise AssertionError("the root is a PreTrainedModel")


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
