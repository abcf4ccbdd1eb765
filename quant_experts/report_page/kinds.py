"""The input groups of a model by kind: ``self_attn.qkv`` of block 0, 1, 2 … are one kind."""

from __future__ import annotations

import re

from quant_experts.report import GroupReport, QualityReport


def kind_of(name: str) -> str:
    """``model.language_model.layers.7.mlp.down`` → ``mlp.down``."""
    return re.sub(r"^.*?\.\d+\.", "", name)


def short_name(name: str) -> str:
    """``model.language_model.layers.0.mlp.down`` → ``layers.0.mlp.down``: the rest is the same in every row."""
    return name[max(0, name.find("layers.")) :]


def by_kind(report: QualityReport) -> dict[str, list[GroupReport]]:
    """Kind → its groups, in the order of the model."""
    kinds: dict[str, list[GroupReport]] = {}
    for block in report.blocks:
        for group in block.groups:
            kinds.setdefault(kind_of(group.name), []).append(group)
    return kinds
