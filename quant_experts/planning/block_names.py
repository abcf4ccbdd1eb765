"""Names of blocks, as the dashboard and the command line show them."""

from __future__ import annotations


def block_name(block: int, stack: str | None = None, index: int | None = None, part: str | None = None) -> str:
    """``block 17``, or ``vision block 3`` and ``vision merger`` in a model with several stacks. The number is the index
    in the model, as in ``model.layers.17``; only counts begin at 1."""
    if stack is None:
        return f"block {block}"
    if index is None:
        return f"{stack} {part}" if part else f"{stack}, behind its blocks"
    return f"{stack} block {index}"
