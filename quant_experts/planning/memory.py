"""Peak memory of a run: what the walk holds at its widest group, and what comes before and after it.

Sums follow the code (``walk.observe``, ``fit``, ``evaluation``, ``checkpoint.verify``); the constants of the
Python process are measured (benchmarks/plan_accuracy.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from quant_experts.planning.blocks import Block, Group
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows
from quant_experts.planning.shapes import Shapes
from quant_experts.planning.sizes import Size, export_bytes, group_bits, ranks_in, weight_bits
from quant_experts.planning.slices import moment_bytes, slices_of

INTERPRETER = 430_000_000
"""Python with torch and transformers imported (CPU build)."""
WORKING = 45_000_000
"""What the first computations bring along: thread pools, kernels, tokenizer."""
IMAGES = 60_000_000
"""Image libraries, and what processors leave behind."""
CLUSTERING = 150_000_000
"""scikit-learn and scipy, of methods with routed experts."""
VERIFIER = 290_000_000
"""What the fresh process that loads the checkpoint has for itself before it does; it shares the libraries' code."""
GENERATION = 60_000_000
"""What the run's own process has more for itself when it loads a whole model and generates."""
CUDA_HOST = 2_500_000_000
"""Host memory of a process that uses CUDA: its libraries are resident. Not measured here."""
CUDA_CONTEXT = 600_000_000

HELD_OUT_TOKENS = 2048
"""Kept per group to measure errors on."""
LOGIT_CHUNK = 256
"""Positions that are evaluated at a time."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak. ``phase``: where it is reached."""

    host: int
    device: int
    phase: str


def memory_of(shapes: Shapes, recipe: Recipe, rows: Rows, size: Size, *, cuda: bool) -> Memory:
    phases = {
        "calibrating": shapes.before_blocks + _activations(shapes, rows),
        "fitting": max(_block(shapes, block, recipe, rows) for block in _kinds(shapes)),
        "evaluating": shapes.head + 4 * 4 * min(LOGIT_CHUNK, int(rows.tokens)) * shapes.vocabulary,
    }
    verification = size.bytes_after_most + _loaded_extra(shapes) + _activations(shapes, rows)
    # What loads an export may hold each weight packed and dequantized.
    export = max((shapes.bytes_before + export_bytes(name, shapes, size) for name in recipe.exports), default=0)
    generating = _generating(shapes, recipe, rows, size) if recipe.evaluation else 0
    loaded = {"verifying": verification, "exporting": export, "generating": generating}
    beside = {"verifying": VERIFIER, "exporting": VERIFIER, "generating": GENERATION}
    widest = max(phases, key=phases.__getitem__)
    python = INTERPRETER + WORKING
    python += IMAGES if rows.images else 0
    python += CLUSTERING if any(ranks_in(group, recipe).experts for group in shapes.groups) else 0
    if cuda:
        # The checkpoint of an evaluation is loaded into the host's memory before it goes to the device.
        host = CUDA_HOST + max(VERIFIER + shapes.largest_other, size.bytes_after_most if recipe.evaluation else 0)
        on_device = {widest: phases[widest], **loaded}
        peak = max(on_device, key=on_device.__getitem__)
        return Memory(host, CUDA_CONTEXT + on_device[peak], peak)
    left = _left_behind(phases["fitting"])
    on_host = {widest: phases[widest], **{name: left + beside[name] + model for name, model in loaded.items()}}
    peak = max(on_host, key=on_host.__getitem__)
    return Memory(python + on_host[peak], 0, peak)


def _kinds(shapes: Shapes) -> list[Block]:
    """One block of each kind: the peak of alike blocks is alike."""
    return list({tuple((group.width, group.outs) for group in block.groups): block for block in shapes.blocks}.values())


def _block(shapes: Shapes, block: Block, recipe: Recipe, rows: Rows) -> int:
    """Weights of the block, what was observed of groups that wait, and the fit of the one in hand, at its worst."""
    samples = rows.used(recipe.samples)
    fit_rows, held_rows = max(1, samples - recipe.held_out(samples)), recipe.held_out(samples)

    def seen(group: Group) -> tuple[int, int]:
        """Tokens kept to fit on, and to measure on."""
        tokens = shapes.tokens(group.reads, rows) * group.share
        return min(recipe.reservoir, int(tokens * fit_rows)), min(HELD_OUT_TOKENS, int(tokens * held_rows))

    weights = block.other_bytes + sum(group.weights for group in block.groups) * shapes.item
    results = worst = 0
    for part in slices_of(block.groups):
        observations = {group.name: _observed(group, *seen(group), shapes.item) for group in part}
        rest = sum(observations.values())
        worst = max(worst, rest + results)
        for group in part:
            worst = max(worst, rest + results + _fit(group, recipe, *seen(group)))
            rest -= observations[group.name]
            results += group_bits(group, recipe, weight_bits(group, recipe, most=True), shapes) // 8
    return weights + worst


def _observed(group: Group, reservoir: int, held_out: int, item: int) -> int:
    return moment_bytes(group) + reservoir * group.width * (4 + item) + held_out * group.width * item


def _fit(group: Group, recipe: Recipe, reservoir: int, held_out: int) -> int:
    """Beyond what was observed: float32 copies of the weights, of the moment and of the reservoir."""
    matrix, moment, sample = 4 * group.weights, 4 * group.width**2, 4 * reservoir * group.width
    has_smoothing = recipe.smoothing != "none"
    work = matrix * (4.25 + has_smoothing) + sample * (0.25 + has_smoothing) + moment * has_smoothing
    scales = 4 * group.rows * (group.width // recipe.group_size_for(group.width)) ** 2
    rounding = {
        "gptq": 7 * moment + 3 * matrix,
        "descent": max(7 * moment + 3 * matrix, moment + 6 * matrix + 2 * scales),
        "obq": 7 * moment + 2**28 + 2 * matrix,
    }.get(recipe.rounding, 0)
    if recipe.may_rotate:
        rounding = max(3 * moment + 3 * matrix, rounding + moment + matrix)
    adapters = 0.0
    if recipe.reconstruction != "none":
        adapters = matrix
        if ranks_in(group, recipe).experts:
            inner = min(group.rows, group.width)
            adapters += matrix * 1.5 + 4 * inner * (group.width + reservoir)
            adapters += 8 * min(group.width, reservoir) ** 2 + 2 * sample
    measurement = matrix * 2 + 4 * 4 * min(1024, max(held_out, 1)) * (group.rows + group.width)
    return int(work + max(rounding, adapters, measurement))


def _activations(shapes: Shapes, rows: Rows) -> int:
    """One row on its way: a handful of its widest states at a time."""
    return max(_of_block(shapes, block, rows) for block in shapes.kinds)


def _of_block(shapes: Shapes, block: Block, rows: Rows) -> int:
    widest = max(max(group.rows, group.width) for group in block.groups)
    tokens = max(shapes.tokens(group.reads, rows) for group in block.groups)
    return int(tokens * 6 * widest * shapes.item + shapes.heads * 4 * tokens**2)


def _loaded_extra(shapes: Shapes) -> int:
    """The widest layer while the loaded model dequantizes it."""
    return 2 * 4 * max(group.width * out for group in shapes.groups for out in group.outs)


def _generating(shapes: Shapes, recipe: Recipe, rows: Rows, size: Size) -> int:
    """The original or the checkpoint as a whole, one row on its way, and the keys and values of all of its tokens."""
    assert recipe.evaluation is not None
    original = shapes.bytes_before + shapes.head if recipe.evaluation.original else 0
    weights = max(original, size.bytes_after_most + _loaded_extra(shapes))
    cached = sum(
        out
        for group in shapes.groups
        for name, out in zip(group.layers, group.outs, strict=True)
        if name.startswith(("k_", "v_"))
    )
    cached = cached or 2 * shapes.hidden * len(shapes.blocks)
    tokens = rows.tokens + recipe.evaluation.max_new_tokens
    return int(weights + _activations(shapes, rows) + cached * shapes.item * tokens + 8 * shapes.vocabulary)


def _left_behind(fit: int) -> int:
    """Of a block's memory the allocator keeps some when the block is gone."""
    return int(0.4 * fit)
