"""The input groups of a model by kind: ``self_attn.qkv`` of block 0, 1, 2 … are one kind."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quant_experts.planning.block_names import block_name
from quant_experts.report.data import BlockReport, GroupReport, QualityReport

LAST = ("language model", "decoder")
"""Names of the stacks that come last in a model."""


def kind_of(name: str, stack: str | None = None) -> str:
    """``model.language_model.layers.7.mlp.down`` → ``mlp.down``; behind the blocks of a stack the module's own name.

    ``stack``: put before it where the model has several.
    """
    kind = re.sub(r"^.*?\.\d+\.", "", name).removeprefix("model.")
    return kind if stack in (None, *LAST) else f"{stack} {kind}"


def short_name(name: str) -> str:
    """``model.language_model.layers.0.mlp.down`` → ``layers.0.mlp.down``: the rest is the same in every row."""
    return name.removeprefix("model.").removeprefix("language_model.")


def by_kind(report: QualityReport) -> dict[str, list[GroupReport]]:
    """Kind → its groups, in the order of the model."""
    kinds: dict[str, list[GroupReport]] = {}
    for block in report.blocks:
        for group in block.groups:
            kinds.setdefault(kind_of(group.name, block.stack), []).append(group)
    return kinds


def name_of(block: BlockReport) -> str:
    return block_name(block.block, block.stack, block.index, block.part)


def tick_label(block: BlockReport) -> str:
    """The same where there is little room: ``v3``, ``v+``; the decoder's blocks are numbers alone."""
    number = "+" if block.index is None else str(block.index)
    if block.stack is None:
        return str(block.block)
    return number if block.stack in LAST else f"{block.stack[0]}{number}"


def axis_label(stacks: Iterable[str | None]) -> str:
    """Says what the ticks of ``tick_label`` mean, for blocks of these stacks."""
    others = [stack for stack in dict.fromkeys(stacks) if stack not in (None, *LAST)]
    if not others:
        return "decoder block"
    letters = "; ".join(f"{stack[0]}0, {stack[0]}1 …: {stack}" for stack in others if stack is not None)
    return f"block ({letters})"
