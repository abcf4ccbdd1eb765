"""What a job of a service looks like while it runs: one live line on a terminal, else one plain line per step."""

from __future__ import annotations

from typing import Any

from quant_experts.client import EventView
from quant_experts.commands.live_line import LiveLine, clock
from quant_experts.commands.progress_display import TITLES, block_name, blocks_counted

NEWEST_WEIGHT = 0.3


class WatchDisplay(LiveLine):
    """A context manager that is fed a job's events. It knows nothing of connections, so none that breaks shows."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id} queued")
        self._seconds: float | None = None

    def on_event(self, event: EventView) -> None:
        data = event.data
        match event.type:
            case "job.created" | "job.retried":
                self._step("queued", done=None)
            case "job.started":
                resumed = data.get("resumed_from_block") or 0
                at = f", resumed at block {resumed}" if resumed else ""
                self.keep(f"attempt {data.get('attempt')} on {data.get('worker')}{at}")
            case "job.phase":
                phase = str(data.get("phase"))
                titles: dict[Any, str] = dict(TITLES)
                self._step(titles.get(phase, phase), done=None)
            case "job.block":
                self._block(data)
            case "job.warning":
                self.keep(f"warning: {data.get('message')}")
            case "job.requeued":
                self.keep(f"attempt {data.get('attempt')} ended: {data.get('reason')}; the job waits again")
            case "job.cancel_requested":
                self._step("cancelling", done=None)
            case "job.succeeded" | "job.failed" | "job.cancelled":
                self._step(event.type.removeprefix("job."), done=None)

    def _block(self, data: dict[str, Any]) -> None:
        done, blocks, seconds = int(data["block"]) + 1, int(data["blocks"]), float(data["seconds"])
        weight = 1.0 if self._seconds is None else NEWEST_WEIGHT
        self._seconds = (self._seconds or 0.0) * (1 - weight) + seconds * weight
        error = (data.get("error") or {}).get("routed")
        shown = f" · error {error:.3%}" if isinstance(error, float) else ""
        name = block_name(done - 1, data.get("stack"), data.get("index"), data.get("part"))
        left = clock((blocks - done) * self._seconds)
        self._step(
            blocks_counted(done, blocks),
            done=done,
            total=blocks,
            detail=f"{name} · {seconds:.1f} s{shown} · {left} left",
        )

    def _step(self, text: str, *, done: int | None, total: int | None = None, detail: str = "") -> None:
        self.show(text, done=done or 0, total=total, detail=detail)
        self.plain(" · ".join(part for part in (text, detail) if part))
