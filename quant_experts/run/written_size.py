"""The size of the checkpoint: planned from the headers, and counted from what the walk has written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quant_experts.model.groups import GroupPlan, walked_modules
from quant_experts.model.run_context import RunContext
from quant_experts.model.tensor_file import TensorFile
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.local import read_local
from quant_experts.planning.shapes import Shapes, shapes_of
from quant_experts.report.data import Size
from quant_experts.spec.specification import QuantizationSpec
from quant_experts.walk.resume_files import FinishedBlock, block_file


def written_size(context: RunContext, blocks: Sequence[FinishedBlock]) -> Size:
    """Bytes of all tensors, before and after; bits per quantized weight."""
    blueprint, plans = context.blueprint, context.plans
    weights = sum(plan.weights for block in plans for plan in block)
    in_blocks = sum(
        entry.bytes for block in blocks for entry in TensorFile(context.work / block_file(block.block)).entries.values()
    )
    beside = sum(blueprint.weights.bytes(name) for name in names_beside_the_blocks(context))
    return Size(
        bytes_before=blueprint.weights.shards.bytes,
        bytes_after=in_blocks + beside,
        bytes_loaded=in_blocks + beside,
        bytes_unpacked=max(plan.width * out for block in plans for plan in block for out in plan.outs)
        * blueprint.dtype.itemsize,
        effective_bits=sum(block.bits[0] for block in blocks) / weights,
        base_bits=sum(block.bits[1] for block in blocks) / weights,
        quantized_weights=weights,
        effective_bits_bf16=_bits_in_bf16(plans, blocks),
    )


def planned_shapes(model: Path, spec: QuantizationSpec) -> Shapes | None:
    """The shapes that a plan of the run is computed from; None for a model that cannot be planned."""
    try:
        return shapes_of(read_local(model), vision=spec.vision)
    except (Unreadable, OSError):
        return None


def names_beside_the_blocks(context: RunContext) -> list[str]:
    """Every tensor outside the walked blocks, under its in-memory name."""
    blocks = tuple(f"{module}." for block in context.plans for module in walked_modules(block))
    return [name for name in context.blueprint.weights.names if not name.startswith(blocks)]


def _bits_in_bf16(plans: Sequence[Sequence[GroupPlan]], blocks: Sequence[FinishedBlock]) -> float | None:
    """Stored bits per weight, had the adapters been stored in bfloat16; None when they were."""
    weights = {plan.name: plan.weights for block in plans for plan in block}
    groups = [group for block in blocks for group in block.report.groups]
    if not any(group.effective_bits_bf16 for group in groups):
        return None
    bits = sum((group.effective_bits_bf16 or group.effective_bits) * weights[group.name] for group in groups)
    return bits / sum(weights.values())
