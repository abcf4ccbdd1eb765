"""Carry the runner's lines to the ledger: each becomes one fenced write, and a file is stored before a row names it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.contract.forecast import FORECAST, Forecast
from core.crash_points import reach
from core.tracing import OFF, Span, part
from worker import metrics, process
from worker.ledger import attempts as ledger
from worker.ledger import blocks
from worker.runner import protocol
from worker.supervisor.fenced_writer import FencedWriter
from worker.supervisor.lease import monotonic
from worker.supervisor.retrying_storage import RetryingStorage
from worker.supervisor.spans import RunnerSpans, last_error

AFTERWARDS = 0.25
"""What comes after a runner's forecast, as a share of the seconds that it took to start: it ends, and its files are
stored and counted."""
PROGRESS_SECONDS = 1.0
"""Seconds between two writes of progress that people only look at."""


class Stalled(Exception):
    """The runner is alive and makes no progress; the message says since when."""


class GivenUp(Exception):
    """The worker's time to drain ran out before the block's end; the message says what is lost."""


class Progress:
    """When the runner last made progress, by its messages. The time that we take to handle them does not count."""

    def __init__(self, *, silence: float, step: float) -> None:
        """``silence``: seconds without a word; ``step``: of one block, or of a phase without blocks. 0: no limit."""
        self._silence = silence
        self._step = step
        self._phase = "starting"
        self._heard_at = self._began_at = monotonic()

    def note_message(self, message: protocol.Line, *, seconds: float) -> None:
        """``seconds`` for which we had ``message`` in hand, and the runner may have waited."""
        self._heard_at = monotonic()
        self._began_at += seconds
        if isinstance(message, protocol.PhaseLine):
            self._phase, self._began_at = message.phase, self._heard_at
        elif isinstance(message, protocol.BlockLine) or _is_reply(message):
            self._began_at = self._heard_at

    @property
    def seconds(self) -> float:
        """Seconds of the step in hand: what a kill would cost."""
        return monotonic() - self._began_at

    def check(self) -> None:
        """Raises Stalled."""
        now = monotonic()
        if 0 < self._silence < now - self._heard_at:
            raise Stalled(f"was killed: no progress for {self._silence:g} s ({self._phase})")
        if 0 < self._step < now - self._began_at:
            raise Stalled(f"was killed: one step took more than {self._step:g} s ({self._phase})")


def _is_reply(message: protocol.Line) -> bool:
    """Whether it tells of replies to a task: each of them is a step, and their number and length are bounded."""
    return isinstance(message, protocol.AdvancedLine) and message.phase == "generating"


class Relay:
    """Writes a runner's messages to the ledger and stores its block files."""

    def __init__(
        self,
        writer: FencedWriter,
        storage: RetryingStorage,
        *,
        job_id: str,
        work: Path,
        stored_files: Sequence[Mapping[str, Any]],
        span: Span = OFF,
    ) -> None:
        self._writer = writer
        self._storage = storage
        self._job_id = job_id
        self._work = work
        self._stored_digests = {file["sha256"] for file in stored_files}
        """Digests of block files that are in storage and in the ledger already."""
        self._spans = RunnerSpans(span)
        self._phase: str | None = None
        self._progress: dict[str, Any] = {}
        self._forecast: Forecast | None = None
        self._began = self._starting = 0.0
        self._unwritten = False
        self._written_at = 0.0

    @property
    def phase(self) -> str | None:
        """The phase that the runner is in."""
        return self._phase

    def follow(
        self,
        child: subprocess.Popen[bytes],
        *,
        draining: Callable[[], bool],
        progress: Progress,
        drain_seconds: float | None = None,
    ) -> protocol.LastWord | None:
        """Relay until the runner closes its channel; its last word, or None when it died without one.

        Asks the runner to stop as soon as ``draining``, and waits ``drain_seconds`` for the end of its block; None: as
        long as it takes. Raises OSError, Stalled, GivenUp, or what the writer raises.
        """
        try:
            return self._follow(child, draining, progress, drain_seconds)
        finally:
            self._spans.close()

    def _follow(
        self,
        child: subprocess.Popen[bytes],
        draining: Callable[[], bool],
        progress: Progress,
        drain_seconds: float | None,
    ) -> protocol.LastWord | None:
        assert child.stdout is not None
        self._began = monotonic()
        last: protocol.LastWord | None = None
        asked_at: float | None = None
        for line in process.lines(child.stdout, limit=protocol.MAX_LINE):
            if asked_at is None and draining():
                asked_at = monotonic()
                process.write_all(child.stdin, protocol.STOP)
            if asked_at is not None and drain_seconds is not None and monotonic() - asked_at > drain_seconds:
                metrics.GIVEN_UP.inc(progress.seconds)
                raise GivenUp(
                    f"the worker was stopped, and the step in hand did not end within {drain_seconds:g} s: its"
                    f" {progress.seconds:.0f} s are lost"
                )
            if line is None:
                progress.check()
                self._write_progress()
                continue
            match protocol.decode(line):
                case protocol.FinishedLine() | protocol.StoppedLine() | protocol.ErrorLine() as word:
                    last = word
                case message:
                    came = monotonic()
                    self._starting = self._starting or came - self._began
                    self._take(message)
                    progress.note_message(message, seconds=monotonic() - came)
                    if isinstance(message, protocol.BlockLine):
                        process.write_all(child.stdin, protocol.stored(message.block))
        return last

    def _take(self, message: protocol.Line) -> None:
        match message:
            case protocol.PhaseLine(phase=phase, total=total) as line:
                self._spans.phase(line)
                self._phase = phase
                self._progress = {"phase": phase, "done": 0, "total": total, "group": None, "error": None}
                self._progress[FORECAST] = self._forecast.as_json() if self._forecast else None
                self._unwritten = True
                if phase != "preparing":  # the claim has set that phase
                    self._writer.write(ledger.set_phase, phase, forecast=self._forecast_fields())
                self._write_progress(now=True, blocks=total if phase == "fitting" else None)
            case protocol.AdvancedLine(phase=phase, done=done, total=total):
                self._progress |= {"phase": phase, "done": done, "total": total}
                self._unwritten = True
                self._write_progress()
            case protocol.GroupLine(group=group):
                self._progress |= {"group": group.get("name"), "error": group.get("error")}
                self._unwritten = True
                self._write_progress()
            case protocol.BlockLine() as block:
                self._take_block(block)
            case protocol.ForecastLine(done=done, left=left):
                self._forecast = Forecast(done, left + AFTERWARDS * self._starting, time.time())
                self._progress[FORECAST] = self._forecast.as_json()
                self._unwritten = True
            case protocol.WarningLine(message=text):
                self._writer.write(ledger.add_warning, text)

    def _take_block(self, block: protocol.BlockLine) -> None:
        if block.resumed and all(file.sha256 in self._stored_digests for file in block.files):
            self._spans.note_resumed(block)
            self._writer.write(blocks.record_resumed, block=block.block, blocks=block.blocks)
            return
        errors = mean_errors(block.groups)
        span = self._spans.block(block, last_error(errors))
        place = {} if block.stack is None else {"stack": block.stack, "index": block.index, "part": block.part}
        files = []
        reach("upload.before")
        with part(span, "upload", {"qe.block": block.block, "qe.bytes": sum(file.bytes for file in block.files)}):
            for file in block.files:
                key = block_key(self._job_id, file.sha256)
                self._storage.put(key, self._work / file.name)
                files.append({"name": file.name, "bytes": file.bytes, "sha256": file.sha256, "key": key})
        reach("upload.after")
        obsolete = self._writer.write(
            blocks.record_block,
            block=block.block,
            blocks=block.blocks,
            seconds=block.seconds,
            report={"seconds_by_phase": block.seconds_by_phase, "groups": block.groups, **place},
            files=files,
            superseded=block.superseded,
            event={
                "block": block.block,
                "blocks": block.blocks,
                "seconds": round(block.seconds, 3),
                "error": errors,
                **place,
                **self._forecast_fields(),
            },
        )
        span.end()
        metrics.BLOCK_SECONDS.observe(block.seconds)
        self._stored_digests.update(file["sha256"] for file in files)
        reach("layer.after_commit")
        if block.resumed:  # of another job: the files are ours now as well
            self._writer.write(blocks.record_resumed, block=block.block, blocks=block.blocks)
        # Only now: until the row was committed, a resume would have needed them.
        for key in obsolete:
            self._storage.delete(key)
        for name in block.superseded:
            (self._work / name).unlink(missing_ok=True)

    def _forecast_fields(self) -> dict[str, Any]:
        """The forecast of the whole job, for an event."""
        return self._forecast.as_of(time.time()) if self._forecast else {}

    def _write_progress(self, *, now: bool = False, blocks: int | None = None) -> None:
        if not self._unwritten or not (now or monotonic() - self._written_at >= PROGRESS_SECONDS):
            return
        self._writer.write(ledger.set_progress, self._progress, blocks=blocks)
        self._written_at = monotonic()
        self._unwritten = False


def block_key(job_id: str, sha256: str) -> str:
    """Where a block's file lives: by its content, so that a block computed twice is stored once."""
    return f"jobs/{job_id}/blocks/{sha256}"


def mean_errors(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean over groups of the relative error after each stage; groups without finite figures do not count."""
    stages: dict[str, list[float]] = {}
    for group in groups:
        for stage, value in (group.get("error") or {}).items():
            if isinstance(value, (int, float)):
                stages.setdefault(stage, []).append(float(value))
    return {stage: sum(values) / len(values) for stage, values in stages.items()}
