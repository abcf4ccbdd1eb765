"""What is refused, asked for and warned about where the walk goes through more than one stack of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quant_experts.calibration.captured_inputs import Calls
from quant_experts.errors import InvalidCalibration, InvalidSpec
from quant_experts.model.families.overrides import TOWERS
from quant_experts.model.families.stack import Stack
from quant_experts.model.manifest import Manifest
from quant_experts.spec.specification import QuantizationSpec

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


def check_stacks(spec: QuantizationSpec, manifest: Manifest, config: Any) -> None:
    """``config``: the model's. Raises InvalidSpec for a vision tower that cannot be quantized."""
    if spec.vision == "quantize":
        _check_tower(manifest, config)


def _check_tower(manifest: Manifest, config: Any) -> None:
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


def about_stacks(spec: QuantizationSpec, first: Stack) -> list[str]:
    """What a user has to know of his choices. ``first``: the first stack that is walked."""
    balance = NOTHING_TO_BALANCE[first.media] if spec.smoothing == "mbq" and first.media is not None else None
    return [*([VISION_COSTS] if spec.vision == "quantize" else []), *([balance] if balance else [])]


def check_rows(calls: Calls, first: Stack) -> None:
    """``calls``: of the first stack. Raises InvalidCalibration when it cannot be fitted or measured on these rows."""
    if first.media is None:
        return
    running = calls.running
    for rows, what in ((running.fit, "fit it on"), (running.held_out, "measure it on")):
        if not rows:
            raise InvalidCalibration(
                f"the model's {first.name} is quantized, and no calibration row to {what} has an {_piece(first)}; "
                f"give more rows that have one" + ("" if first.media == "audio" else ', or vision "keep"')
            )


def _piece(stack: Stack) -> str:
    return "audio part" if stack.media == "audio" else "image"


def audio_tokens(calls: Calls, first: Stack) -> int:
    """Positions of the encoder, over all rows to fit; 0 for models that hear nothing."""
    return sum(_positions(calls)) if first.media == "audio" else 0


def _positions(calls: Calls) -> Iterator[int]:
    for call in calls.running.fit:
        shape = calls.tensors.entries[f"{call.index}.embeddings"].shape
        yield shape[0] * shape[1]
