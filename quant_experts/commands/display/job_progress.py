"""The progress of a job on a service: one live line on a terminal, else one plain line per step."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from quant_experts.client import EventView
from quant_experts.commands.display.live_line import LiveLine, later, time_left
from quant_experts.commands.display.run_progress import TITLES, blocks_counted
from quant_experts.planning.block_names import block_name


class JobProgress(LiveLine):
    """A context manager that shows a job's events. It is independent of connections."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id} queued")

    def on_event(self, event: EventView) -> None:
        data = event.data
        match event.type:
            case "job.created" | "job.retried":
                self._step("queued", event)
            case "job.started":
                first = data.get("resumed_from_block") or 0
                at = f", resumed at block {first}" if first else ""
                self.keep(f"attempt {data.get('attempt')} on {data.get('worker')}{at}")
            case "job.phase":
                phase = str(data.get("phase"))
                titles: dict[Any, str] = dict(TITLES)
                self._step(titles.get(phase, phase), event)
            case "job.block":
                self._block(event)
            case "job.warning":
                self.print_once(f"warning: {data.get('message')}")
            case "job.requeued":
                self.keep(f"attempt {data.get('attempt')} ended: {data.get('reason')}; the job waits again")
            case "job.cancel_requested":
                self._step("cancelling", event)
            case "job.succeeded" | "job.failed" | "job.cancelled":
                self._step(event.type.removeprefix("job."), event)

    def _block(self, event: EventView) -> None:
        data = event.data
        count, blocks, seconds = int(data["block"]) + 1, int(data["blocks"]), float(data["seconds"])
        error = (data.get("error") or {}).get("routed")
        suffix = f" · error {error:.3%}" if isinstance(error, float) else ""
        name = block_name(count - 1, data.get("stack"), data.get("index"), data.get("part"))
        self._step(blocks_counted(count, blocks), event, detail=f"{name} · {seconds:.1f} s{suffix}")

    def _step(self, text: str, event: EventView, *, detail: str = "") -> None:
        forecast = _forecast(event)
        rest = time_left(forecast[1]) if forecast else ""
        age = max(0.0, (datetime.now(UTC) - event.created_at).total_seconds())
        self.show(text, detail=detail, forecast=later(forecast, age) if forecast else None)
        self.plain(" · ".join(part for part in (text, detail, rest) if part))


def _forecast(event: EventView) -> tuple[float, float] | None:
    """Seconds of the job that were done and left at the event; None where unknown."""
    rest, fraction = event.data.get("eta_seconds"), event.data.get("fraction")
    if rest is None or fraction is None:
        return None
    return (fraction * rest / (1 - fraction), rest) if fraction < 1 else (1.0, 0.0)
