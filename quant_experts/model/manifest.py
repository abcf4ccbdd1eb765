"""What the walk has to know of a model: its stacks of blocks and their input groups, what runs around them, and what
stays as it is and why. It is found in the model (``discovery.py``); ``families/`` holds the exceptions, each with a
reason."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from quant_experts.errors import UnsupportedModel
from quant_experts.model.discovery import FoundStack, common_path, discover, head_of
from quant_experts.model.families.overrides import LABELS, TOWERS
from quant_experts.model.families.stack import Stack, State
from quant_experts.planning.layer_rules import ELSEWHERE as NO_DECODER
from quant_experts.planning.stacks import Groups, in_order

Vision = Literal["keep", "quantize"]

LEAST_SHARE = 0.5
"""Of the weights in the decoder's matrices: a model that keeps more than half of them is not worth a checkpoint."""

AUTO_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "AutoModelForImageTextToText": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "AutoModelForSpeechSeq2Seq": {"whisper": "WhisperForConditionalGeneration"},
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
"""Auto class → ``model_type`` → class of the model, or several."""

EXPERTS = re.compile(r"\.experts\b(?!.*shared)")
"""In the path of a mixture's routed experts, which are not quantized yet."""

OUTPUT_HEAD = "output head: kept in full precision"
TOWER = "vision tower: quantizing it costs the most accuracy"
ELSEWHERE = "outside of the blocks that are walked"


@dataclass(frozen=True)
class Manifest:
    """``outside``: modules and parameters that are neither in the decoder nor in the output head, such as a vision
    tower and its projector. ``head``: module path of the output head; ``after``: of all that runs behind the decoder,
    the head among it. ``tower``: the vision tower as a stack, where it can be quantized. ``encoder``: a stack whose
    output the decoder reads; always walked. ``skipped``: linear layers and other matrices that stay as they are → the
    reason; block numbers are ``*``."""

    model_type: str
    model_class: str
    decoder: Stack
    head: str
    after: tuple[str, ...]
    outside: tuple[str, ...] = ()
    takes_images: bool = False
    tower: Stack | None = None
    encoder: Stack | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def language_model(self) -> str:
        """Path of the module that runs the decoder's blocks."""
        return self.decoder.module

    @property
    def with_head(self) -> str:
        """Path of the smallest module that runs the language model and the output head; empty for the model itself."""
        return common_path(self.language_model, self.head)

    def stacks(self, vision: Vision = "keep") -> tuple[Stack, ...]:
        """The stacks that are walked, in the order in which the model runs them; the decoder is the last."""
        return in_order(self.tower, self.encoder, self.decoder, vision=vision)

    def kept_in_blocks(self, vision: Vision = "keep") -> dict[str, str]:
        """Of ``skipped``, what lies in blocks that are walked."""
        walked = tuple(f"{stack.module}.{stack.layers}." for stack in self.stacks(vision))
        return {name: reason for name, reason in self.skipped.items() if name.startswith(walked)}

    @property
    def embeddings(self) -> str:
        return f"{self.decoder.module}.{self.decoder.embedding}"

    @property
    def before_blocks(self) -> tuple[str, ...]:
        """Everything that runs before the first decoder block, where the walk has that stack only."""
        return (*self.outside, self.embeddings)

    @property
    def between(self) -> tuple[str, ...]:
        """What runs between the first stack and the decoder's embeddings, where the walk has both."""
        return tuple(path for path in self.outside if path != self.stacks("quantize")[0].module)


def auto_class_of(config: Mapping[str, Any]) -> str:
    """Name of the auto class of transformers that builds the model of a ``config.json``.

    Raises UnsupportedModel for a ``model_type`` that the installed transformers has no such class for, and for one that
    is no language model.
    """
    kind = config.get("model_type")
    model_classes: list[str] = []
    for auto_class, names in AUTO_CLASSES.items():
        classes_of_kind = names.get(kind, ()) if isinstance(kind, str) else ()
        classes = [classes_of_kind] if isinstance(classes_of_kind, str) else list(classes_of_kind)
        if classes and set(classes) & set(config.get("architectures") or classes):
            return auto_class
        model_classes += classes
    if model_classes:
        raise UnsupportedModel(
            f"config.json: architecture {', '.join(map(str, config['architectures']))} is not supported; of {kind} it "
            f"is {', '.join(dict.fromkeys(model_classes))}"
        )
    raise UnsupportedModel(
        f"config.json: model_type {kind!r} is not supported: transformers {transformers.__version__} has no causal "
        "language model and no image-text-to-text model of that name"
    )


def manifest_of(model: Any) -> Manifest:
    """``model``: on the meta device. Raises UnsupportedModel naming what cannot be walked."""
    *encoders, decoder_stack = discover(model)
    kind = model.config.model_type
    takes_images = kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    head = head_of(model, decoder_stack.module)
    assert decoder_stack.embedding is not None, "the decoder's module is chosen so"
    decoder = Stack(
        "decoder" if encoders else "language model",
        decoder_stack.module,
        layers=decoder_stack.layers,
        each=_labelled(kind, decoder_stack.blocks),
        memory=decoder_stack.memory if encoders else (),
        embedding=decoder_stack.embedding,
        state=_state(model, f"{decoder_stack.module}.{decoder_stack.embedding}", decoder_stack),
        others=decoder_stack.others,
        takes_ids=decoder_stack.takes_ids,
        runs_towers=decoder_stack.runs_towers,
    )
    encoder = next((_encoder(kind, each) for each in encoders), None)
    _refuse_mostly_kept(model, decoder, decoder_stack)
    skipped = {**{name: why for each in encoders for name, why in each.skipped.items()}, **decoder_stack.skipped}
    manifest = Manifest(
        kind,
        type(model).__name__,
        decoder,
        head,
        decoder_stack.after,
        outside=tuple(parts_but(model, "", {decoder_stack.module, head})),
        takes_images=takes_images,
        tower=TOWERS.get(kind),
        encoder=encoder,
    )
    return replace(manifest, skipped=dict(_skipped(model, manifest, skipped)))


def _state(model: nn.Module, embedding: str, stack: FoundStack) -> State | None:
    table = model.get_parameter(f"{embedding}.weight")
    embedded = State((1, 0, table.shape[-1]), str(table.dtype).removeprefix("torch."))
    return None if stack.state == embedded else stack.state


def _encoder(kind: str, stack: FoundStack) -> Stack:
    return Stack(
        "encoder",
        stack.module,
        layers=stack.layers,
        each=_labelled(kind, stack.blocks),
        embeds=None,
        media="audio",
        others=stack.others,
    )


def _labelled(kind: str, blocks: tuple[Groups, ...]) -> tuple[Groups, ...]:
    """With the labels that older checkpoints of the type have."""
    other = LABELS.get(kind, {})
    return tuple(
        tuple((parent, other.get(label, label), layers) for parent, label, layers in block) for block in blocks
    )


def parts_but(model: nn.Module, prefix: str, without: Collection[str]) -> Iterator[str]:
    """Paths of the largest modules, parameters and buffers below ``prefix`` that hold nothing of ``without``."""
    owner = model.get_submodule(prefix)
    before = f"{prefix}." if prefix else ""
    for name, child in owner.named_children():
        path = f"{before}{name}"
        if path in without:
            continue
        if any(each.startswith(f"{path}.") for each in without):
            yield from parts_but(model, path, without)
        elif next(child.parameters(), None) is not None or next(child.buffers(), None) is not None:
            yield path
    for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
        if tensor is not None and f"{before}{name}" not in without:
            yield f"{before}{name}"


def _refuse_mostly_kept(model: nn.Module, decoder: Stack, stack: FoundStack) -> None:
    layers = [
        ".".join(part for part in (decoder.block(index), parent, layer) if part)
        for index, groups in enumerate(decoder.each)
        for parent, _, layers in groups
        for layer in layers
    ]
    quantized = sum(_weights(model, layer) for layer in layers)
    rest: dict[str, int] = {}
    for name in stack.skipped:
        rest[_starred(name)] = rest.get(_starred(name), 0) + _weights(model, name)
    total = quantized + sum(rest.values())
    experts = any(EXPERTS.search(name) and not NO_DECODER.search(name) for name in rest)
    if quantized >= LEAST_SHARE * total and quantized and not experts:
        return
    if not rest:
        raise UnsupportedModel(f"{stack.module}.{stack.layers} holds no linear layers")
    largest = max(rest, key=lambda name: rest[name])
    reason = next(why for name, why in stack.skipped.items() if _starred(name) == largest)
    raise UnsupportedModel(
        f"{largest} holds {rest[largest] / total:.0%} of the weights in the decoder's blocks and cannot be quantized "
        f"yet: {reason}"
    )


def _weights(model: nn.Module, name: str) -> int:
    """``name``: of a linear layer, or of a parameter."""
    try:
        return model.get_parameter(f"{name}.weight").numel()
    except AttributeError:
        return model.get_parameter(name).numel()


def _skipped(model: nn.Module, manifest: Manifest, in_blocks: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """One line per kind."""
    for name, reason in in_blocks.items():
        yield _starred(name), reason
    walked = tuple(f"{stack.module}.{stack.layers}." for stack in manifest.stacks())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(walked):
            yield _starred(name), _reason(name, manifest)


def _reason(name: str, manifest: Manifest) -> str:
    if name == manifest.head:
        return OUTPUT_HEAD
    return TOWER if manifest.takes_images and name.startswith(manifest.outside) else ELSEWHERE


def _starred(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)
