"""Vision towers that can be quantized: the planner's stacks, with what a walk has to know beside them.

Their patch embedding is a convolution and stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant_experts.model.families.stack import Stack
from quant_experts.planning import stacks


def _tower(
    stack: stacks.Stack, module: str, part: str, read_again: Callable[[Any], tuple[int, ...]] = lambda config: ()
) -> Stack:
    return Stack(
        stack.name,
        module,
        stack.groups,
        layers=stack.blocks.removeprefix(f"{module}."),
        behind=stack.behind,
        part=part,
        embeds=None,
        read_again=read_again,
        media=stack.media,
    )


def _deep_stack(config: Any) -> tuple[int, ...]:
    """Qwen3-VL hands what comes out of these blocks to the language model too, each through a merger of its own."""
    last = config.vision_config.depth - 1
    return tuple(sorted(number for number in config.vision_config.deepstack_visual_indexes if number != last))


QWEN2_VL = _tower(stacks.QWEN2_VL, "model.visual", "merger")
QWEN2_5_VL = _tower(stacks.QWEN2_5_VL, "model.visual", "merger")
QWEN3_VL = _tower(stacks.QWEN3_VL, "model.visual", "merger", _deep_stack)
INTERNVL = _tower(stacks.INTERNVL, "model.vision_tower", "projector")
