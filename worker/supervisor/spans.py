"""Spans of an attempt: what the supervisor does itself, and what its runner says of its own time.

The runner has neither network nor the address of a collector. Its lines say when something was over and how long it
took, and the supervisor, on the same machine and hence the same clock, makes spans of that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from core.tracing import OFF, Span
from worker.runner import protocol


class RunnerSpans:
    """Phases and blocks of one runner, side by side below its attempt.

    Not blocks below the phase in which they are fitted: that of a killed worker never ends, and they would hang in the
    air.
    """

    def __init__(self, attempt: Span) -> None:
        self._attempt = attempt
        self._phase: Span = OFF

    def phase(self, line: protocol.PhaseLine) -> None:
        self._phase.end(line.at)
        self._phase = self._attempt.child(line.phase, {"qe.total": line.total}, began=line.at)

    def block(self, line: protocol.BlockLine, final_error: float | None) -> Span:
        """The span of a block that was computed, with its parts one after another as they were timed. The caller ends
        it when the block is stored."""
        at = time.time() if line.at is None else line.at
        attributes = {"qe.block": line.block, "qe.blocks": line.blocks, "qe.seconds": line.seconds}
        span = self._attempt.child("block", {**attributes, "qe.error": final_error}, began=at - line.seconds)
        began = at - line.seconds
        for name, seconds in line.seconds_by_phase.items():
            span.child(name, {"qe.block": line.block}, began=began).end(began + seconds)
            began += seconds
        return span

    def note_resumed(self, line: protocol.BlockLine) -> None:
        self._attempt.note({"qe.resumed_from_block": line.block + 1})

    def close(self) -> None:
        """The runner is gone, and with it the phase that it was in."""
        self._phase.end()
        self._phase = OFF


def last_error(means: Mapping[str, float]) -> float | None:
    """Mean error of a block, after its last stage."""
    return list(means.values())[-1] if means else None
