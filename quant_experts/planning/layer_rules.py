"""Rules over names and shapes of layers, that discovery in a model and the planner among tensor names share."""

from __future__ import annotations

import re
from collections.abc import Sequence

FEWEST_OUTPUTS = 16
WIDTH_STEP = 32
"""Input channels share a weight scale by 32 at least; a width that 32 does not divide cannot be quantized."""
ELSEWHERE = re.compile(
    r"(^|[._])(vision|visual|audio|image|img|vit|vq|qformer|tower|speech|perceiver|aligner|merger|deepstack|resampler)"
)
"""In the path of a list of blocks that is not the language model's."""
ROUTERS = ("router", "gate", "shared_expert_gate", "expert_gate")
"""Last names of linear layers that choose experts."""
SMALL_PARTS = ("in_proj_ba", "in_proj_a", "in_proj_b", "b_proj", "a_proj", "dt_proj", "x_proj", "dt_in_proj")
"""Last names of linear layers whose outputs steer a recurrence: few weights, and errors that accumulate over tokens."""

MIXTURE = re.compile(r"(^|\.)experts\.")
"""In the path of a linear layer of an expert that a router chooses among others."""

NO_PREFIX = re.compile(r"^linear_(?=.)|_(proj|layer|linear)(?=$)")


def reason_to_skip(name: str, width: int, outputs: int) -> str | None:
    """Why a linear layer of a block stays as it is, as far as its name and shape say; None where they do not."""
    last = name.rpartition(".")[2]
    if last in ROUTERS:
        return "router: chooses among experts"
    if last in SMALL_PARTS or outputs < FEWEST_OUTPUTS:
        return f"small: {outputs} outputs that steer others"
    if width % WIDTH_STEP:
        return f"{width} input channels are no multiple of {WIDTH_STEP}"
    return None


def is_of_mixture(parent: str, layer: str) -> bool:
    """Whether a linear layer is an expert's that sees only the tokens that a router sends to it."""
    return MIXTURE.search(f"{parent}.{layer}") is not None


def label_of(layers: Sequence[str]) -> str:
    """What a group is called: ``q_proj k_proj v_proj`` → ``qkv``, ``gate_proj up_proj`` → ``gate_up``."""
    last = [layer if layer.rpartition(".")[2].isdigit() else layer.rpartition(".")[2] for layer in layers]
    stems = [NO_PREFIX.sub("", name) for name in last]
    joint = "" if all(len(stem) == 1 for stem in stems) else "_"
    return joint.join(stems).replace(".", "_")


def labelled(groups: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(parent, layers) → (parent, label, layers); no two groups of one parent have the same label."""
    labels: set[tuple[str, str]] = set()
    entries = []
    for parent, layers in groups:
        label = stem = label_of(layers)
        number = 1
        while (parent, label) in labels:
            number += 1
            label = f"{stem}_{number}"
        labels.add((parent, label))
        entries.append((parent, label, layers))
    return tuple(entries)
