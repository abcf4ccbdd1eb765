"""From the last block of a stack to the first of the next: what the next one is called with.

The rest of the first stack runs, with the states that its blocks have left standing in for them, until the model calls
the next stack. Each stream of hidden states has calls of its own: the language model behind a quantized vision tower
gets the quantized tower's features, and its full-precision stream those of the full-precision tower.
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
    Call,
    Calls,
    Stream,
    call_files,
    dismantle,
    finish_calls,
    read_calls,
)
from quant_experts.errors import NumericalFailure
from quant_experts.model.block_runner import Arguments, block_glue, capture_call
from quant_experts.model.blueprint import Blueprint, empty, fill
from quant_experts.model.families.stack import Stack
from quant_experts.model.groups import GroupPlan
from quant_experts.model.tensor_file import TensorFile, TensorSpool
from quant_experts.progress import ShouldStop, stop_if
from quant_experts.walk.resume_files import HiddenStates, chain_file

Cross = Callable[[Call, Stream], tuple[Arguments, Tensor]]
"""A row, in one of its streams → arguments of the next stack's call, and what its first block begins with."""


def stem_of(first: int) -> str:
    """Of the files with the calls of the stack that begins with the walked block ``first``."""
    return f"calls-{first:05d}"


@contextmanager
def to_the_next_stack(
    blueprint: Blueprint, last: GroupPlan, following: Stack, calls: Calls, work: Path
) -> Iterator[Cross]:
    """``last``: a plan of the stack's last block; ``calls``: of its stack, all rows; those that do not call it go past.

    The rest of the stack's module is in memory, as it is when a row crosses. What the model runs between the two
    stacks is brought there in full precision, and is there while this is open.
    """
    stack, device = last.stack, blueprint.device
    assert last.index is not None
    hidden = HiddenStates(work, calls, last.block + 1)
    again = {
        index: TensorFile(work / chain_file(calls.first + index)) for index in stack.read_again(blueprint.model.config)
    }
    module, next_module = blueprint.module(stack), blueprint.module(following)
    between = (*blueprint.manifest.between, blueprint.manifest.embeddings)
    for name in between:
        fill(blueprint, name)
    try:
        with block_glue(module, last.index + 1, stack) as glue:

            def cross(call: Call, stream: Stream) -> tuple[Arguments, Tensor]:
                inputs = calls.probe(call)
                assert inputs is not None, "the inputs of every row are kept where another stack follows"
                inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                if call.tree is None:
                    return capture_call(blueprint.model, next_module, inputs, following)
                states = {index: file.read(f"{stream}.{call.index}").to(device) for index, file in again.items()}
                with glue.standing_for(hidden.of_stream(stream, call).to(device), states):
                    return capture_call(blueprint.model, next_module, inputs, following)

            yield cross
    finally:
        for name in between:
            empty(blueprint, name)


class CrossingWriter:
    """Collects the next stack's calls, stream by stream, as the rows cross; nothing is visible until it is finished."""

    def __init__(self, work: Path, first: int, before: Calls) -> None:
        """``first``: number of the next stack's first block; ``before``: the calls of the stack that is left."""
        self._work, self._first, self._before = work, first, before
        self._spool = TensorSpool(work / call_files(stem_of(first))[0])
        self._trees: dict[tuple[Stream, int], Any] = {}

    def take(self, rows: Sequence[Call], stream: Stream, cross: Cross, should_stop: ShouldStop) -> None:
        """Raises NumericalFailure naming a row whose embeddings are not finite; a variant like that is left out."""
        for call in rows:
            stop_if(should_stop)
            arguments, embeddings = cross(call, stream)
            if not bool(torch.isfinite(embeddings).all()):
                if call.variant_of is not None:
                    continue
                raise NumericalFailure(
                    f"calibration row {call.number}: what the stack before {stem_of(self._first)} puts out is not "
                    f"finite in the {stream} stream; the model overflows on this row"
                )
            prefix = "" if stream == "quantized" else f"{stream}."
            self._spool.add(f"{prefix}{call.index}.embeddings", embeddings)
            self._trees[stream, call.index] = dismantle(self._spool, f"{prefix}{call.index}.arguments", arguments)

    def finish(self, fingerprint: str) -> Calls:
        before = self._before
        rows = [self._call(call) for call in before.rows]
        variants = [self._call(call) for call in before.variants if self._is_whole(call)]
        return finish_calls(
            self._work,
            stem_of(self._first),
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

    def _is_whole(self, call: Call) -> bool:
        return all((stream, call.index) in self._trees for stream in ("quantized", "full"))

    def _call(self, call: Call) -> Call:
        """The row's call of the next stack; what is known of the row itself moves along."""
        for name in ("vision", "input_ids"):
            self._spool.add(f"{call.index}.{name}", self._before.tensors.read(f"{call.index}.{name}"))
        probe = call.probe if call.held_out and call.index < PROBES else None
        for stored in (probe or {}).values():
            self._spool.add(stored, self._before.tensors.read(stored))
        streams = {
            stream: tree
            for (stream, index), tree in self._trees.items()
            if index == call.index and stream != "quantized"
        }
        return replace(call, tree=self._trees["quantized", call.index], streams=streams, probe=probe)


def calls_at(work: Path, first: int, before: Calls, fingerprint: str) -> Calls | None:
    """The calls of the stack that begins with the walked block ``first``, as an earlier crossing left them."""
    if first == before.first:
        return before
    return read_calls(work, fingerprint, stem=stem_of(first), first=first)


def files_at(first: int) -> tuple[str, ...]:
    """What a walk inside the stack that begins with ``first`` needs; none for the first, whose calls are gathered."""
    return call_files(stem_of(first)) if first else ()
