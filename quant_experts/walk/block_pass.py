"""How calibration rows pass what is walked, stream by stream, and what they leave for the walk to go on with.

A block of a stack takes hidden states and leaves hidden states. What lies behind the blocks of a stack takes hidden
states and leaves the calls of the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from quant_experts.calibration.captured_inputs import Call, Calls, Stream
from quant_experts.model.block_runner import block_glue
from quant_experts.model.blueprint import Blueprint, around_blocks, empty, fill
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import OnEvent, ShouldStop, WrittenFile, stop_if
from quant_experts.walk.baseline import is_baseline
from quant_experts.walk.file_lifetimes import Route
from quant_experts.walk.group_settings import Treatment
from quant_experts.walk.resume_files import ChainWriter, HiddenStates
from quant_experts.walk.stack_transition import Cross, CrossingWriter, calls_at, to_the_next_stack

Pass = Callable[[Call, Stream], Tensor]
"""A row, in one of its streams → the block's output, on the CPU."""


@contextmanager
def _through_block(blueprint: Blueprint, plan: GroupPlan, calls: Calls, hidden: HiddenStates) -> Iterator[Pass]:
    """With the weights that the block has when the row passes. ``plan``: any of the block's; ``hidden``: its inputs."""
    assert plan.index is not None, "a block, not what lies behind its stack"
    device = blueprint.device
    with block_glue(blueprint.module(plan.stack), plan.index, plan.stack) as glue:

        def run(call: Call, stream: Stream) -> Tensor:
            state = hidden.of_stream(stream, call).to(device)
            return glue.run(calls.arguments(call, device, stream), state).cpu()

        yield run


@dataclass(frozen=True)
class Walk:
    """What stays the same from block to block."""

    blueprint: Blueprint
    plans: Sequence[Sequence[GroupPlan]]
    route: Route
    treatment: Treatment
    work: Path
    fingerprint: str
    on_event: OnEvent
    should_stop: ShouldStop


def calls_for(walk: Walk, number: int, calls: Calls) -> Calls:
    """Of the block's stack: ``calls``, or those behind a border, crossed now unless an earlier run did."""
    first = walk.route.first_of[number]
    found = calls_at(walk.work, first, calls, walk.fingerprint)
    if found is not None:
        return found
    last = walk.plans[first - 1][0]
    assert last.index is not None, "what lies behind a stack writes the next one's calls itself"
    names = around_blocks(walk.blueprint, last.stack)
    for name in names:
        fill(walk.blueprint, name)
    writer = CrossingWriter(walk.work, first, calls)
    try:
        following = walk.plans[number][0].stack
        with to_the_next_stack(walk.blueprint, last, following, calls, walk.work) as cross:
            for stream, rows in _rows_by_stream(walk.treatment, calls).items():
                writer.take(rows, stream, cross, walk.should_stop)
        return writer.finish(walk.fingerprint)
    finally:
        writer.discard()
        for name in names:
            empty(walk.blueprint, name)


def _rows_by_stream(treatment: Treatment, calls: Calls) -> dict[Stream, Sequence[Call]]:
    rows: dict[Stream, Sequence[Call]] = {"full": (*calls.held_out, *calls.variants)}
    if not is_baseline(treatment.spec):
        rows["baseline"] = calls.held_out
    return {**rows, "quantized": (*calls.rows, *calls.variants)}


class Passage(Protocol):
    """Rows pass what is walked, stream by stream, and leave what the walk goes on with."""

    calls: Calls

    def open(self) -> AbstractContextManager[Callable[[Call, Stream], Any]]: ...

    def take(self, stream: Stream, rows: Sequence[Call], passing: Callable[[Call, Stream], Any]) -> None: ...

    def finish(self, passing: Callable[[Call, Stream], Any]) -> tuple[WrittenFile, ...]: ...


def passage_of(walk: Walk, number: int, calls: Calls) -> Passage:
    return _Border(walk, number, calls) if walk.plans[number][0].index is None else _Block(walk, number, calls.running)


class _Block:
    """Hidden states in, hidden states out: each is on disk before the next is computed."""

    def __init__(self, walk: Walk, number: int, calls: Calls) -> None:
        self._walk, self._number, self.calls = walk, number, calls
        self._rows = _rows_by_stream(walk.treatment, calls)
        if number + 1 == len(walk.plans):  # nobody looks at the rows that were fitted on
            self._rows["quantized"] = (*calls.held_out, *calls.variants)

    @contextmanager
    def open(self) -> Iterator[Pass]:
        walk, number = self._walk, self._number
        hidden = HiddenStates(walk.work, self.calls, number)
        self._writer = ChainWriter(walk.work, number, self.calls, self._rows)
        try:
            with _through_block(walk.blueprint, walk.plans[number][0], self.calls, hidden) as passing:
                yield passing
        finally:
            self._writer.discard()

    def take(self, stream: Stream, rows: Sequence[Call], passing: Pass) -> None:
        for call in rows:
            stop_if(self._walk.should_stop)
            self._writer.add(stream, call, passing(call, stream))

    def finish(self, passing: Pass) -> tuple[WrittenFile, ...]:
        """Run the quantized block."""
        self.take("quantized", self._rows["quantized"], passing)
        return (self._writer.finish(),)


class _Border:
    """What lies behind the blocks of a stack: hidden states in, calls of the next stack out."""

    def __init__(self, walk: Walk, number: int, calls: Calls) -> None:
        self._walk, self._number, self.calls = walk, number, calls

    @contextmanager
    def open(self) -> Iterator[Cross]:
        walk, number = self._walk, self._number
        last, following = walk.plans[number - 1][0], walk.plans[number + 1][0].stack
        self._writer = CrossingWriter(walk.work, number + 1, self.calls)
        try:
            with to_the_next_stack(walk.blueprint, last, following, self.calls, walk.work) as cross:
                yield cross
        finally:
            self._writer.discard()

    def take(self, stream: Stream, rows: Sequence[Call], passing: Cross) -> None:
        self._writer.take(rows, stream, passing, self._walk.should_stop)

    def finish(self, passing: Cross) -> tuple[WrittenFile, ...]:
        self.take("quantized", (*self.calls.rows, *self.calls.variants), passing)
        return self._writer.finish(self._walk.fingerprint).files
