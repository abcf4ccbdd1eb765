"""What a job of a service looks like while it runs: one live line on a terminal, else one plain line per step."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from quant_experts.client import EventView
from quant_experts.commands.progress_display import TITLES

NEWEST_WEIGHT = 0.3


class WatchDisplay:
    """A context manager that is fed a job's events. It knows nothing of connections, so none that breaks shows."""

    def __init__(self, job_id: str) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(f"{job_id} queued", total=None, detail="")
        self._seconds: float | None = None

    def __enter__(self) -> WatchDisplay:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def on_event(self, event: EventView) -> None:
        data = event.data
        match event.type:
            case "job.created" | "job.retried":
                self._step("queued", done=None)
            case "job.started":
                resumed = data.get("resumed_from_block") or 0
                at = f", resumed after block {resumed}" if resumed else ""
                self._note(f"attempt {data.get('attempt')} on {data.get('worker')}{at}")
            case "job.phase":
                phase = str(data.get("phase"))
                titles: dict[Any, str] = dict(TITLES)
                self._step(titles.get(phase, phase), done=None)
            case "job.block":
                self._block(data)
            case "job.warning":
                self._note(f"warning: {data.get('message')}")
            case "job.requeued":
                self._note(f"attempt {data.get('attempt')} ended: {data.get('reason')}; the job waits again")
            case "job.cancel_requested":
                self._step("cancelling", done=None)
            case "job.succeeded" | "job.failed" | "job.cancelled":
                self._step(event.type.removeprefix("job."), done=None)

    def _block(self, data: dict[str, Any]) -> None:
        block, blocks, seconds = int(data["block"]) + 1, int(data["blocks"]), float(data["seconds"])
        weight = 1.0 if self._seconds is None else NEWEST_WEIGHT
        self._seconds = (self._seconds or 0.0) * (1 - weight) + seconds * weight
        error = (data.get("error") or {}).get("routed")
        shown = f" · error {error:.3%}" if isinstance(error, float) else ""
        left = round((blocks - block) * self._seconds)
        clock = time.strftime("%H:%M:%S", time.gmtime(left)).removeprefix("00:")
        self._step(
            f"block {block} of {blocks}", done=block, total=blocks, detail=f"{seconds:.1f} s{shown} · {clock} left"
        )

    def _step(self, text: str, *, done: int | None, total: int | None = None, detail: str = "") -> None:
        self._progress.update(self._task, description=text, completed=done or 0, total=total, detail=detail)
        if not self._console.is_terminal:
            self._console.print(" · ".join(part for part in (text, detail) if part), markup=False, soft_wrap=True)

    def _note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
