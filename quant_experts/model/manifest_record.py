"""A manifest as plain data: what ``qe inspect --model`` prints, and what a checkpoint says of its structure.

Its version is ``VERSION``; a record of a later version is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quant_experts.errors import InvalidCheckpoint
from quant_experts.model.groups import GroupPlan
from quant_experts.model.manifest import Manifest, Vision

VERSION = 1


def short_record(manifest: Manifest, vision: Vision = "keep") -> dict[str, Any]:
    """What a checkpoint says beside its groups: the stacks, and what was skipped and why."""
    return {
        "version": VERSION,
        "stacks": [
            {"name": stack.name, "module": stack.module, "blocks": f"{stack.module}.{stack.layers}"}
            for stack in manifest.stacks(vision)
        ],
        "skipped": dict(manifest.skipped),
    }


def record_of(manifest: Manifest, plans: Sequence[Sequence[GroupPlan]]) -> dict[str, Any]:
    """``plans``: of every walked block. Blocks that are alike are one entry of ``kinds``, in the order of the first.

    ``blocks``: numbers within the stack, empty for what lies behind its blocks; ``width`` and ``outs``: input and
    output channels.
    """
    kinds: dict[tuple[Any, ...], dict[str, Any]] = {}
    for block in plans:
        groups = [
            {
                "name": _within(plan),
                "layers": list(plan.layers),
                "width": plan.width,
                "outs": list(plan.outs),
            }
            for plan in block
        ]
        stack, index = block[0].stack, block[0].index
        key = (stack.name, index is None, repr(groups))
        kind = kinds.setdefault(key, {"stack": stack.name, "blocks": [], "groups": groups})
        if index is not None:
            kind["blocks"].append(index)
    vision: Vision = "quantize" if any(block[0].stack == manifest.tower for block in plans) else "keep"
    return {
        "model_type": manifest.model_type,
        "architecture": manifest.model_class,
        **short_record(manifest, vision),
        "head": manifest.head,
        "embeddings": manifest.embeddings,
        "quantized_weights": sum(plan.weights for block in plans for plan in block),
        "kinds": list(kinds.values()),
    }


def check_version(record: Mapping[str, Any]) -> None:
    """Raises InvalidCheckpoint for a record that a later version of the library has written."""
    version = record.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise InvalidCheckpoint(
            f"config.json: the manifest in quantization_config has version {version}, this library reads up to "
            f"{VERSION}: install a later quant-experts"
        )


def _within(plan: GroupPlan) -> str:
    """The name within the block; the full one behind the blocks."""
    return plan.name if plan.index is None else plan.name.removeprefix(f"{plan.stack.block(plan.index)}.")
