"""What a run refuses and warns about, as early as it can be known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs
from quant_experts.calibration.samples import RowFile
from quant_experts.errors import InvalidCalibration, InvalidSpec
from quant_experts.evaluation.calibration_quality import NO_IMAGE
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.families.overrides import TOWERS
from quant_experts.model.families.stack import Stack
from quant_experts.model.groups import GroupPlan
from quant_experts.model.manifest import Manifest
from quant_experts.model.weights import Weights
from quant_experts.planning.cautions import ROWS_UNREAD, cautions_of
from quant_experts.planning.headers import INDEX, SINGLE
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.shapes import Shapes
from quant_experts.planning.sizes import size_of
from quant_experts.spec.specification import QuantizationSpec

ADAPTER = "adapter_config.json"
VISION_COSTS = (
    "the vision tower is quantized too: published results for vision-language models are that this costs more accuracy "
    "than anything else that can be quantized, and that its activations need more bits than the language model's; "
    'compare with vision "keep" on your own task before you ship it'
)
NOTHING_TO_BALANCE = {
    "image": (
        "smoothing mbq balances errors on image tokens against errors on text tokens; every token of the vision tower "
        "is of an image, so that it is awq's grid with the mean absolute error as the objective there"
    ),
    "audio": (
        "smoothing mbq balances errors on image tokens against errors on text tokens; this model has no image tokens, "
        "so that it is awq's grid with the mean absolute error as the objective"
    ),
}


def chosen_device(name: str | None) -> torch.device:
    """The device called ``name``; for None ``cuda`` where there is one, else ``cpu``. Raises InvalidSpec."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidSpec(f"device {name!r}: torch sees no CUDA device here")
    return torch.device(name)


def check_tower(spec: QuantizationSpec, manifest: Manifest, config: Any) -> None:
    """``config``: the model's. Raises InvalidSpec when the spec quantizes a vision tower that cannot be quantized."""
    if spec.vision != "quantize":
        return
    if manifest.tower is None:
        able = ", ".join(TOWERS)
        what = "has no vision tower" if not manifest.takes_images else "has a vision tower that cannot be quantized"
        raise InvalidSpec(f'vision "quantize": {manifest.model_class} {what}; it works for {able}')
    layer = getattr(config, "vision_feature_layer", -1)
    if layer != -1:
        raise InvalidSpec(
            f'vision "quantize": the model takes the output of layer {layer} of its vision tower, and only towers '
            'whose last layer is taken can be quantized; give vision "keep"'
        )


def check_group_size(spec: QuantizationSpec, plans: Sequence[Sequence[GroupPlan]]) -> None:
    """Raises InvalidSpec naming the first group whose width the group size does not divide."""
    if not isinstance(spec.group_size, int):
        return
    for plan in (plan for block in plans for plan in block):
        if plan.width % spec.group_size:
            raise InvalidSpec(
                f"group size {spec.group_size} does not divide the input width {plan.width} of {plan.name}; "
                'choose one that does, or "auto" or "channel"'
            )


def check_rows(inputs: CapturedInputs, first: Stack) -> None:
    """``inputs``: of the ``first`` stack. Raises InvalidCalibration when no row that reaches it is left to fit or to
    measure on."""
    if first.media is None:
        return
    piece = "audio part" if first.media == "audio" else "image"
    names = inputs.running
    for rows, what in ((names.fit, "fit it on"), (names.held_out, "measure it on")):
        if not rows:
            raise InvalidCalibration(
                f"the model's {first.name} is quantized, and no calibration row to {what} has an {piece}; "
                f"give more rows that have one" + ("" if first.media == "audio" else ', or vision "keep"')
            )


def size_warnings(shapes: Shapes | None, spec: QuantizationSpec) -> list[str]:
    """The cautions of a plan, with figures of better choices; none for a model that cannot be planned."""
    if shapes is None:
        return []
    recipe = Recipe.of(**spec.model_dump())
    return [caution.message for caution in cautions_of(shapes, recipe, size_of(shapes, recipe))]


def file_warnings(rows: RowFile) -> list[str]:
    """Rows that are not read."""
    return [ROWS_UNREAD] if rows.has_more else []


def model_warnings(weights: Weights) -> list[str]:
    """Anything unexpected in the model's files."""
    directory = weights.shards.directory
    warnings = [
        f"config.json ties {target} to {source}, but the model's files hold both with different values: both are kept, "
        "as transformers does, and the checkpoint's config.json says tie_word_embeddings: false"
        for target, source in weights.untied.items()
    ]
    if weights.unused:
        warnings.append(
            f"{len(weights.unused)} tensors in the model's files belong to no module and are dropped, the first is "
            f"{weights.unused[0]}"
        )
    if (directory / ADAPTER).is_file():
        warnings.append(
            f"{ADAPTER} lies beside the model: the adapter is not part of it and is left out; where it belongs to the "
            "model, merge it first (peft: merge_and_unload)"
        )
    if SINGLE in (file.path.name for file in weights.shards.files) and (directory / INDEX).is_file():
        warnings.append(f"{INDEX} lies beside {SINGLE} and is not read, as in transformers")
    return warnings


def kept_warnings(spec: QuantizationSpec, manifest: Manifest) -> list[str]:
    """Layers of the blocks that nobody asked to keep, one warning per reason."""
    names: dict[str, list[str]] = {}
    for name, reason in manifest.kept_in_blocks(spec.vision).items():
        names.setdefault(reason, []).append(name)
    return [f"kept in full precision: {', '.join(layers)} ({reason})" for reason, layers in names.items()]


def stack_warnings(spec: QuantizationSpec, first: Stack) -> list[str]:
    """What the user's choices cost. ``first``: the first stack that is walked."""
    balance = NOTHING_TO_BALANCE[first.media] if spec.smoothing == "mbq" and first.media is not None else None
    return [*([VISION_COSTS] if spec.vision == "quantize" else []), *([balance] if balance else [])]


def row_warnings(blueprint: Blueprint, inputs: CapturedInputs) -> list[str]:
    """What is missing in the rows, and what was done to them."""
    warnings = []
    if blueprint.manifest.takes_images and not any(row.tokens_vision for row in inputs.fit):
        warnings.append(NO_IMAGE)
    for reason, count in inputs.skipped.items():
        names_row = reason.startswith("calibration row ")
        warnings.append(f"{'' if names_row else f'{count} calibration rows were '}skipped: {reason}")
    if inputs.resized:
        warnings.append(f"{inputs.resized} calibration rows had their images made smaller to fit")
    return warnings
