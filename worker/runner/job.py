"""The child that computes: reads a job file, calls the library, and says on its own channel how it goes.

    python -m worker.runner.job job.json

The one process of the service that loads torch. Before it reads what strangers wrote it raises walls around itself
(``worker.runner.confinement``): no sockets, no files but the model, the rows, its own directory and the programs of the
machine, and nothing of other processes. What libraries print goes to the log, not into the channel; ``stop`` or the end
of stdin asks it to finish the block in hand and end. It never has more than one block that a kill could cost: the next
one begins when the supervisor has stored the last.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from core import crash_points
from quant_experts.files import NO_SPACE
from worker.runner import protocol
from worker.runner.confinement import NotConfined, confine, with_linked

if TYPE_CHECKING:
    from quant_experts.spec.choices import Evaluation
    from quant_experts.spec.specification import AcceptIf, QuantizationSpec

MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
DISK_WORDS = ("no space left on device", "disk quota exceeded", "file too large")


def main(job_file: str) -> int:
    channel = _take_stdout()
    job = _confined(Path(job_file))  # before there is a second thread, which no wall would stand around
    orders = Orders()
    # Unbuffered: at its end Python wants the lock of a buffered stdin, which the thread that reads it holds.
    stdin = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115 -- open until the process ends
    threading.Thread(target=orders.listen, args=(stdin,), name="stdin", daemon=True).start()

    def say(message: protocol.Line) -> None:
        channel.write(protocol.encode(message))
        channel.flush()

    try:
        if isinstance(job, Exception):
            raise job
        say(_quantize(job, say, orders))
    except BrokenPipeError:  # nobody listens any more; the kernel is about to say so too
        return 1
    except Exception as error:  # noqa: BLE001 -- the boundary of the process: every error becomes one line
        traceback.print_exc()
        say(explain(error))
        return 1
    return 0


def _confined(job_file: Path) -> protocol.RunnerJob | Exception:
    """What is to be done, by a process behind its walls; or why it cannot be."""
    try:
        job = protocol.RunnerJob.model_validate_json(job_file.read_bytes())
    except (OSError, ValueError) as error:
        return error
    if job.confinement == "off":
        return job
    signs = [Path(os.environ[crash_points.VARIABLE])] if crash_points.enabled() else []
    model, rows = with_linked(Path(job.model)), with_linked(Path(job.calibration))
    task = (job.evaluation or {}).get("dataset")
    task_rows = with_linked(Path(task)) if task else []
    walls = confine(directory=job_file.parent, read=[*model, *rows, *task_rows], write=signs)
    if walls.missing and job.confinement == "required":
        return NotConfined(f"no wall around {', '.join(walls.missing)}, and QE_RUNNER_CONFINEMENT=required")
    return job


def explain(error: Exception) -> protocol.ErrorLine:
    """The error as a stable code and one line. Raises nothing."""
    from quant_experts.errors import QuantExpertsError

    text = " ".join(str(error).split())
    lower_case = text.lower()
    if isinstance(error, QuantExpertsError):
        code, message = error.code, text
    elif isinstance(error, MemoryError) or any(word in lower_case for word in MEMORY_WORDS):
        code, message = "out_of_memory", f"the computing process has not enough memory: {text or 'allocation failed'}"
    elif (isinstance(error, OSError) and error.errno in NO_SPACE) or any(word in lower_case for word in DISK_WORDS):
        code, message = "out_of_disk", f"the computing process has no space left on its disk: {text}"
    else:
        code, message = "internal", f"{type(error).__name__}: {text}"
    return protocol.ErrorLine(code=code, message=message[:2000])


class Orders:
    """What the supervisor has said so far. Written by the thread that listens, read by the one that computes."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._stop = False
        self._last_stored = -1

    def listen(self, stdin: Iterable[bytes]) -> None:
        for line in stdin:
            if line == protocol.STOP:
                break
            with self._news:
                self._last_stored = int(line.removeprefix(protocol.STORED))
                self._news.notify_all()
        with self._news:
            self._stop = True
            self._news.notify_all()

    def stop_asked(self) -> bool:
        return self._stop

    def wait_stored(self, block: int) -> None:
        """Wait until ``block`` is stored, or the runner is asked to stop and begins no other block anyway."""
        with self._news:
            self._news.wait_for(lambda: self._stop or self._last_stored == block)


def _quantize(job: protocol.RunnerJob, say: Callable[[protocol.Line], None], orders: Orders) -> protocol.LastWord:
    # Here and not above: a runner that is stopped or misdirected at once need not have loaded torch.
    from quant_experts import crash_points as library_points
    from quant_experts import progress
    from quant_experts.errors import Stopped
    from quant_experts.run import quantize as pipeline

    if crash_points.enabled():
        library_points.listener = crash_points.reach
    spec, accept_if, evaluation = specification_of(job)
    last: protocol.LastWord | None = None

    def on_event(event: progress.Event) -> None:
        nonlocal last
        message = translate(event)
        if isinstance(message, protocol.FinishedLine):
            last = message  # said only when the pipeline has returned: then nothing can go wrong any more
            return
        say(message)
        if isinstance(message, protocol.BlockLine):
            orders.wait_stored(message.block)

    try:
        pipeline.quantize(
            model=Path(job.model),
            calibration=Path(job.calibration),
            output=Path(job.output),
            spec=spec,
            work=Path(job.work),
            model_id=job.model_id,
            model_commit=job.model_commit,
            split=job.split,
            follow_links=False,
            accept_if=accept_if,
            exports=job.exports,
            evaluation=evaluation,
            keep_superseded=True,  # the supervisor may still be copying them; it deletes them when it has committed
            on_event=on_event,
            should_stop=orders.stop_asked,
        )
    except Stopped:
        return protocol.StoppedLine()
    if last is None:
        raise RuntimeError("the pipeline returned without naming the files of the checkpoint")
    return last


def specification_of(job: protocol.RunnerJob) -> tuple[QuantizationSpec, AcceptIf | None, Evaluation | None]:
    """What to do, the limits that its result is held against, and the task that it is tried on. Raises InvalidSpec."""
    from pydantic import ValidationError

    from quant_experts.errors import InvalidSpec
    from quant_experts.spec.choices import Evaluation
    from quant_experts.spec.specification import AcceptIf, QuantizationSpec

    try:
        # A job without a version is older than the field; a new one carries the version of its defaults.
        options = {"method_version": 1, **job.options}
        spec = QuantizationSpec.preset(job.method, scheme=job.scheme, target=job.target, **options)
        accept_if = None if job.accept_if is None else AcceptIf(**job.accept_if)
        return spec, accept_if, None if job.evaluation is None else Evaluation(**job.evaluation)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"option {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise InvalidSpec(f"{where}{first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise InvalidSpec(str(error)) from error


def translate(event: object) -> protocol.Line:
    """The library's progress event as a line. Raises TypeError for an event that this file does not know."""
    from quant_experts import progress

    match event:
        case progress.PhaseStarted():
            return protocol.PhaseLine(phase=event.phase, total=event.total, at=time.time())
        case progress.Advanced():
            return protocol.AdvancedLine(phase=event.phase, done=event.done, total=event.total)
        case progress.GroupFitted():
            return protocol.GroupLine(block=event.block, blocks=event.blocks, group=event.group.model_dump(mode="json"))
        case progress.BlockFinished():
            return protocol.BlockLine(
                block=event.block,
                blocks=event.blocks,
                seconds=event.seconds,
                seconds_by_phase=event.seconds_by_phase,
                groups=[group.model_dump(mode="json") for group in event.groups],
                files=[protocol.File(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in event.files],
                superseded=list(event.superseded),
                resumed=event.resumed,
                stack=event.stack,
                index=event.index,
                part=event.part,
                at=time.time(),
            )
        case progress.Forecast():
            return protocol.ForecastLine(done=event.done, left=event.left)
        case progress.Warned():
            return protocol.WarningLine(message=event.message)
        case progress.Finished():
            files = [protocol.File(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in event.files]
            exports = [asdict(outcome) for outcome in event.exports]
            return protocol.FinishedLine(output=str(event.output), files=files, exports=exports)
    raise TypeError(f"unknown progress event {type(event).__name__}")


def _take_stdout() -> BinaryIO:
    """The channel: a private copy of stdout. What else is written to stdout, also by C code, goes to stderr."""
    sys.stdout.flush()
    channel = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(channel, "wb")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
