"""From the last block of a stack to the first block of the next: capture what the next stack receives.

The rest of the first stack runs, with stubs that return what its blocks have left, until the model calls the next
stack. Each stream of hidden states captures inputs of its own: the language model behind a quantized vision tower
receives the features of the quantized tower, and its full-precision stream those of the full-precision tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import (
    PROBES,
    CapturedInputs,
    CapturedRow,
    Stream,
    captured_files,
    read_captured_inputs,
    store_call,
    store_captured_inputs,
)
from quant_experts.errors import NumericalFailure
from quant_experts.model.block_runner import Arguments, capture_arguments, open_block_runner
from quant_experts.model.blueprint import Blueprint, loaded
from quant_experts.model.families.stack import Stack
from quant_experts.model.groups import GroupPlan
from quant_experts.model.tensor_file import TensorFile, TensorSpool
from quant_experts.progress import ShouldStop, stop_if
from quant_experts.walk.resume_files import HiddenStates, states_file

Transition = Callable[[CapturedRow, Stream], tuple[Arguments, Tensor]]
"""A row in one of its streams → arguments of the next stack's call, and what its first block receives."""


def stack_stem(first: int) -> str:
    """Stem of the files with the inputs of the stack that begins with the walked block ``first``."""
    return f"calls-{first:05d}"


def stack_files(first: int) -> tuple[str, ...]:
    """The files that a walk inside the stack that begins with ``first`` needs. The first stack needs none: its inputs
    are captured again."""
    return captured_files(stack_stem(first)) if first else ()


def stored_stack_inputs(work: Path, first: int, inputs: CapturedInputs, fingerprint: str) -> CapturedInputs | None:
    """The inputs of the stack that begins with the walked block ``first``: ``inputs``, if they are that stack's, or
    what an earlier transition stored."""
    if first == inputs.first:
        return inputs
    return read_captured_inputs(work, fingerprint, stem=stack_stem(first), first=first)


@contextmanager
def stack_transition(
    blueprint: Blueprint, last: GroupPlan, next_stack: Stack, inputs: CapturedInputs, work: Path
) -> Iterator[Transition]:
    """Open the way from the stack of ``last``, a plan of its last block, to ``next_stack``.

    ``inputs``: of the stack that ends, all rows; a row that does not call it skips it. The rest of that stack's module
    is in memory already. What the model runs between the two stacks is loaded, in full precision, while this is open.
    """
    stack, device = last.stack, blueprint.device
    assert last.index is not None
    hidden = HiddenStates(work, inputs, last.block + 1)
    again = {
        index: TensorFile(work / states_file(inputs.first + index))
        for index in stack.read_again(blueprint.model.config)
    }
    module, next_module = blueprint.module(stack), blueprint.module(next_stack)

    def run_row(row: CapturedRow, stream: Stream) -> tuple[Arguments, Tensor]:
        probe = inputs.probe(row)
        assert probe is not None, "the inputs of every row are stored where another stack follows"
        model_inputs = {name: tensor.to(device) for name, tensor in probe.items()}
        if row.tree is None:
            return capture_arguments(blueprint.model, next_module, model_inputs, next_stack)
        states = {index: file.read(f"{stream}.{row.index}").to(device) for index, file in again.items()}
        with runner.stubs_return(hidden.read(stream, row).to(device), states):
            return capture_arguments(blueprint.model, next_module, model_inputs, next_stack)

    with (
        loaded(blueprint, *blueprint.manifest.between, blueprint.manifest.embeddings),
        open_block_runner(module, last.index + 1, stack) as runner,
    ):
        yield run_row


class NextInputsWriter:
    """Collects the inputs of the next stack, stream by stream. Nothing is visible until ``finish``."""

    def __init__(self, work: Path, first: int, before: CapturedInputs) -> None:
        """``first``: number of the next stack's first block. ``before``: the inputs of the stack that ends."""
        self._work, self._first, self._before = work, first, before
        self._spool = TensorSpool(work / captured_files(stack_stem(first))[0])
        self._trees: dict[tuple[Stream, int], Any] = {}

    def take(
        self, rows: Sequence[CapturedRow], stream: Stream, transition: Transition, should_stop: ShouldStop
    ) -> None:
        """Run the rows through the transition. A variant whose embeddings are not finite is left out.

        Raises NumericalFailure naming a row whose embeddings are not finite.
        """
        for row in rows:
            stop_if(should_stop)
            arguments, embeddings = transition(row, stream)
            if not bool(torch.isfinite(embeddings).all()):
                if row.variant_of is not None:
                    continue
                raise NumericalFailure(
                    f"calibration row {row.number}: what the stack before {stack_stem(self._first)} puts out is not "
                    f"finite in the {stream} stream; the model overflows on this row"
                )
            prefix = "" if stream == "quantized" else f"{stream}."
            self._trees[stream, row.index] = store_call(self._spool, f"{prefix}{row.index}.", arguments, embeddings)

    def finish(self, fingerprint: str) -> CapturedInputs:
        """Make the inputs durable, under ``fingerprint``."""
        before = self._before
        rows = [self._next_row(row) for row in before.rows]
        variants = [self._next_row(row) for row in before.variants if self._is_whole(row)]
        return store_captured_inputs(
            self._work,
            stack_stem(self._first),
            self._spool,
            rows=rows,
            variants=variants,
            skipped=before.skipped,
            resized=before.resized,
            fingerprint=fingerprint,
            first=self._first,
        )

    def discard(self) -> None:
        self._spool.discard()

    def _is_whole(self, row: CapturedRow) -> bool:
        return all((stream, row.index) in self._trees for stream in ("quantized", "full"))

    def _next_row(self, row: CapturedRow) -> CapturedRow:
        """The row as the next stack receives it. What is known of the row itself is copied."""
        for name in ("vision", "input_ids"):
            self._spool.add(f"{row.index}.{name}", self._before.tensors.read(f"{row.index}.{name}"))
        probe = row.probe if row.held_out and row.index < PROBES else None
        for key in (probe or {}).values():
            self._spool.add(key, self._before.tensors.read(key))
        own = {stream: tree for (stream, index), tree in self._trees.items() if index == row.index}
        return replace(row, tree=own.pop("quantized"), streams=own, probe=probe)
