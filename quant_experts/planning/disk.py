"""Bytes on a worker's disk at the peak of a run: what the walk keeps, and what measuring and trying write beside it.

Sums follow the code: ``calibration.captured_inputs``, ``walk``, ``sensitivity``, ``search`` and ``checkpoint``.
``tests/quant_experts`` holds them against the peaks of real runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quant_experts.planning.blocks import Block
from quant_experts.planning.recipe import AUTO, Recipe
from quant_experts.planning.rows import Rows
from quant_experts.planning.shapes import Shapes
from quant_experts.planning.sizes import Size, export_bytes

RETAINED_STATES = 2
"""Hidden states of this many blocks stay on disk. When the newest are damaged, the walk goes back one block and not to
the beginning."""
STATES_AT_ONCE = RETAINED_STATES + 1
"""Files of hidden states at once: the retained ones and the one being written."""
VARIED_ROWS, VARIANTS_EACH = 8, 2
"""Held-out rows that are also passed with other images, and how many times."""
FEW_ROWS, FEW_TOKENS = 4, 4096
"""Rows that sensitivity and gradients are measured on, and their tokens together."""
TRIAL_FIT, TRIAL_HELD = 16, 16
"""Rows of a point that ``auto`` tries."""
TOKEN_BYTES = 41
"""Of a token, beside its state: id, mask, kind, and its position in three directions."""
FLOAT = 4
"""Bytes of one value of an image as its processor leaves it, whatever the model's dtype."""
RECORD, ROW_RECORD = 20_000, 1_000
"""Bytes of the JSON about a block, and about a row in one stack."""
REPORT = 600_000
"""Report, card, recipe and the other small files of a checkpoint."""


@dataclass(frozen=True)
class _Stack:
    """Bytes that one row brings. ``state``: a hidden state; ``captured_inputs``: what the stack is called with in one
    stream. ``blocks``: of the stack; ``behind``: what lies behind them. ``groups``: input groups of the blocks."""

    blocks: Sequence[Block]
    behind: Sequence[Block]
    state: float
    captured_inputs: float

    @property
    def groups(self) -> int:
        return sum(len(block.groups) for block in self.blocks)

    @property
    def groups_behind(self) -> int:
        return sum(len(block.groups) for block in self.behind)


@dataclass(frozen=True)
class _Streams:
    """How many rows pass: ``all`` in the quantized stream, ``full`` in the full-precision one, ``baseline`` rounded to
    nearest."""

    all: float
    full: float
    baseline: float

    @property
    def states(self) -> float:
        return self.all + self.full + self.baseline


def disk_of(shapes: Shapes, recipe: Recipe, rows: Rows, size: Size, *, from_hub: bool, rows_bytes: int) -> int:
    """The model when it comes from the hub, the file of rows that the worker fetches, and beside them the largest phase
    of the run."""
    inputs = (shapes.bytes_before if from_hub else 0) + rows_bytes
    return inputs + max(disk_by_phase(shapes, recipe, rows, size).values())


def disk_by_phase(shapes: Shapes, recipe: Recipe, rows: Rows, size: Size) -> dict[str, int]:
    """Name of a phase → bytes at its peak, of all that the run has on disk then."""
    samples = rows.used(recipe.samples)
    held_out = recipe.held_out(samples)
    variants = VARIANTS_EACH * min(VARIED_ROWS, held_out) * min(rows.images, 1.0)
    streams = _streams(samples, held_out, variants, recipe)
    stacks = [_stack(shapes, rows, blocks) for blocks in _by_stack(shapes)]
    captured_inputs = _gathered(shapes, rows, stacks, streams)
    few = max(1.0, min(FEW_ROWS, samples - held_out, FEW_TOKENS / max(rows.tokens, 1.0)))
    last_inputs = stacks[-1].captured_inputs * streams.states if len(stacks) > 1 else 0.0
    stored = last_inputs + (STATES_AT_ONCE - 1) * stacks[-1].state * streams.states + sum(size.blocks_after)
    # What lies beside the blocks is spooled while the shards are written, and gone when the report is.
    phases = {
        "gathering": captured_inputs,
        "walking": max(_walk(shapes, stacks, streams, size.blocks_after)),
        "packing": stored + size.bytes_after_most + max(shapes.others, REPORT),
    }
    if recipe.exports:
        exported = sum(export_bytes(name, shapes, size) for name in recipe.exports)
        phases["exporting"] = stored + size.bytes_after_most + REPORT + exported
    if recipe.measures_sensitivity:
        phases["sensitivity"] = max(_sensitivity(shapes, stacks, few))
    if recipe.smoothing == "mbq" and shapes.family.encoder is None:
        phases["gradients"] = max(_gradients(shapes, stacks, few))
    if recipe.scheme == AUTO:
        trial_rows = min(max(0, samples - held_out), TRIAL_FIT), min(held_out, TRIAL_HELD)
        trial = _streams(sum(trial_rows), trial_rows[1], 0.0, recipe)
        phases["trials"] = max(_walk(shapes, stacks, trial, size.blocks_after))
    records = RECORD * len(shapes.blocks) + ROW_RECORD * len(stacks) * streams.all
    return {name: int(captured_inputs + beside + records) for name, beside in phases.items()}


def _streams(rows: int, held_out: int, variants: float, recipe: Recipe) -> _Streams:
    return _Streams(rows + variants, held_out + variants, 0 if recipe.is_rounding_alone else held_out)


def _by_stack(shapes: Shapes) -> Iterator[list[Block]]:
    for _, blocks in itertools.groupby(shapes.blocks, key=lambda block: block.stack):
        yield list(blocks)


def _stack(shapes: Shapes, rows: Rows, blocks: Sequence[Block]) -> _Stack:
    first = blocks[0].groups[0]
    state = shapes.tokens(first.reads, rows) * first.width * shapes.item
    if first.reads == "tokens":
        beside = rows.tokens * (TOKEN_BYTES + shapes.masks * rows.tokens)
        beside += len(shapes.deep_blocks) * rows.image_tokens * first.width * shapes.item
        beside += shapes.audio_positions * shapes.hidden * shapes.item
    else:
        beside = _inputs(shapes, rows) * shapes.item
    return _Stack(
        [block for block in blocks if block.index is not None],
        [block for block in blocks if block.index is None],
        state,
        state + beside,
    )


def _inputs(shapes: Shapes, rows: Rows) -> float:
    """Values of a row's images or of its sound, as the model takes them in."""
    if shapes.audio_positions:
        # The kernel of the first convolution is three wide; the second one halves the frames.
        return 2.0 * shapes.audio_positions * shapes.patch_values / 3
    return shapes.tokens("patches", rows) * shapes.patch_values


def _gathered(shapes: Shapes, rows: Rows, stacks: Sequence[_Stack], streams: _Streams) -> float:
    """The calls of the first stack. Where another one follows, the inputs of every row are kept, else those of one."""
    inputs = _inputs(shapes, rows) * (shapes.item if shapes.audio_positions else FLOAT) + TOKEN_BYTES * rows.tokens
    return streams.all * stacks[0].captured_inputs + (streams.all if len(stacks) > 1 else 1.0) * inputs


def _walk(shapes: Shapes, stacks: Sequence[_Stack], streams: _Streams, blocks: Sequence[int]) -> Iterator[float]:
    """While each stack is walked, and while the rows cross over to the next; without the calls of the first."""
    blocks_so_far = 0.0
    captured_inputs = 0.0
    for stack, next_stack in itertools.zip_longest(stacks, stacks[1:]):
        blocks_so_far += sum(blocks[block.number] for block in (*stack.blocks, *stack.behind))
        again = shapes.read_again if next_stack is not None else 0
        yield blocks_so_far + captured_inputs + (STATES_AT_ONCE + again) * stack.state * streams.states
        if next_stack is not None:
            captured_inputs = next_stack.captured_inputs * streams.states
            yield blocks_so_far + 2 * captured_inputs + (STATES_AT_ONCE - 1 + again) * stack.state * streams.states


def _sensitivity(shapes: Shapes, stacks: Sequence[_Stack], rows: float) -> Iterator[float]:
    """A stream for every group of the stacks so far, and the full-precision one."""
    streams, captured_inputs, states_so_far = 1.0, 0.0, 0.0
    for stack, next_stack in itertools.zip_longest(stacks, stacks[1:]):
        streams += stack.groups
        states = streams * rows * stack.state
        yield captured_inputs + states_so_far + states
        if next_stack is not None:
            states_so_far += (1 + shapes.read_again) * states
            streams += stack.groups_behind
            captured_inputs = streams * rows * next_stack.captured_inputs
            yield states_so_far + states + 2 * captured_inputs


def _gradients(shapes: Shapes, stacks: Sequence[_Stack], rows: float) -> Iterator[float]:
    """The way to the last stack in full precision, and there a state in front of every block and behind the last."""
    captured_inputs = states_so_far = 0.0
    for stack, next_stack in itertools.pairwise(stacks):
        states = rows * stack.state
        states_so_far += (1 + shapes.read_again) * states
        captured_inputs = rows * next_stack.captured_inputs
        yield states_so_far + states + 2 * captured_inputs
    yield states_so_far + captured_inputs + (len(stacks[-1].blocks) + 1) * rows * stacks[-1].state
