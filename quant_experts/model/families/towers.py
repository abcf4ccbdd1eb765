"""Vision towers that can be quantized. Their patch embedding is a convolution and stays as it is."""

from __future__ import annotations

from typing import Any

from quant_experts.model.families.stack import Groups, Stack

QWEN = "model.visual"

QWEN_ATTENTION: Groups = (("attn", "qkv", ("qkv",)), ("attn", "proj", ("proj",)))
QWEN_MERGER: Groups = (
    (f"{QWEN}.merger", "fc1", ("mlp.0",)),
    (f"{QWEN}.merger", "fc2", ("mlp.2",)),
)

QWEN2_VL = Stack(
    "vision",
    QWEN,
    (*QWEN_ATTENTION, ("mlp", "fc1", ("fc1",)), ("mlp", "fc2", ("fc2",))),
    layers="blocks",
    behind=QWEN_MERGER,
    part="merger",
    embeds=None,
    media="image",
)

QWEN2_5_VL = Stack(
    "vision",
    QWEN,
    (*QWEN_ATTENTION, ("mlp", "gate_up", ("gate_proj", "up_proj")), ("mlp", "down", ("down_proj",))),
    layers="blocks",
    behind=QWEN_MERGER,
    part="merger",
    embeds=None,
    media="image",
)


def _deep_stack(config: Any) -> tuple[int, ...]:
    """Qwen3-VL hands what comes out of these blocks to the language model too, each through a merger of its own."""
    last = config.vision_config.depth - 1
    return tuple(sorted(number for number in config.vision_config.deepstack_visual_indexes if number != last))


QWEN3_VL = Stack(
    "vision",
    QWEN,
    (*QWEN_ATTENTION, ("mlp", "fc1", ("linear_fc1",)), ("mlp", "fc2", ("linear_fc2",))),
    layers="blocks",
    behind=(
        (f"{QWEN}.merger", "fc1", ("linear_fc1",)),
        (f"{QWEN}.merger", "fc2", ("linear_fc2",)),
        (f"{QWEN}.deepstack_merger_list.*", "fc1", ("linear_fc1",)),
        (f"{QWEN}.deepstack_merger_list.*", "fc2", ("linear_fc2",)),
    ),
    part="merger",
    embeds=None,
    read_again=_deep_stack,
    media="image",
)

INTERNVL = Stack(
    "vision",
    "model.vision_tower",
    (
        ("attention", "qkv", ("q_proj", "k_proj", "v_proj")),
        ("attention", "out", ("projection_layer",)),
        ("mlp", "fc1", ("fc1",)),
        ("mlp", "fc2", ("fc2",)),
    ),
    layers="encoder.layer",
    behind=(
        ("model.multi_modal_projector", "fc1", ("linear_1",)),
        ("model.multi_modal_projector", "fc2", ("linear_2",)),
    ),
    part="projector",
    embeds=None,
    media="image",
)
