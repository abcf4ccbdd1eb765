"""The progress of a run on stderr: one live line on a terminal, else one plain line per step."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from quant_experts.commands.display.live_line import LiveLine, time_left
from quant_experts.planning.block_names import block_name
from quant_experts.planning.number_text import size_text
from quant_experts.progress import (
    Advanced,
    BlockFinished,
    Event,
    ExportOutcome,
    Finished,
    Forecast,
    GroupFitted,
    Phase,
    PhaseStarted,
    Warned,
)

TITLES: dict[Phase, str] = {
    "preparing": "checking the model",
    "calibrating": "reading samples",
    "fitting": "fitting",
    "packing": "writing the checkpoint",
    "verifying": "loading it in a fresh process",
    "evaluating": "comparing with full precision",
    "generating": "generating replies",
    "exporting": "exporting",
    "publishing": "publishing",
}


def blocks_counted(count: int, blocks: int) -> str:
    """``18 of 28 blocks``."""
    return f"{count} of {blocks} blocks"


def export_lines(outcome: ExportOutcome) -> Iterator[str]:
    """What to tell of an export, line by line."""
    if outcome.problem is not None:
        yield f"export {outcome.format}: not made: {outcome.problem}"
        return
    yield f"export {outcome.format}: {size_text(outcome.bytes)}"
    for loss in outcome.losses:
        yield f"export {outcome.format}: not in it: {loss}"
    if not outcome.loaded:
        yield f"export {outcome.format}: it was not loaded here, because the package that reads it is not installed"


def say(text: str) -> None:
    """Print a line of the result on stdout, unchanged."""
    Console(highlight=False, soft_wrap=True, markup=False, emoji=False).print(text)


class RunProgress(LiveLine):
    """A context manager whose ``on_event`` a run calls.

    The bar and the time left are of the whole run. While fitting it shows n of N blocks, the block and group in hand
    and the mean held-out error so far.
    """

    def __init__(self) -> None:
        super().__init__("starting")
        self._errors: list[float] = []
        self._forecast: Forecast | None = None
        self._blocks = 0

    def note(self, text: str) -> None:
        """Print a note that stays on the screen."""
        self.keep(f"qe: {text}")

    def on_event(self, event: Event) -> None:
        match event:
            case Forecast():
                self._forecast = event
            case PhaseStarted(phase):
                self._show(TITLES[phase])
                self.plain(" · ".join((TITLES[phase], *self._time_left())))
            case Advanced(phase, done, total):
                self._show(TITLES[phase], f"{done} of {total}")
            case GroupFitted(block, blocks, group, stack, index, part):
                self._errors.append(group.error.routed)
                short = ".".join(group.name.split(".")[-2:])
                where = f"{block_name(block, stack, index, part)} · {short}"
                self._show(blocks_counted(self._blocks, blocks), f"{where} · error so far {self._mean_error():.3%}")
            case BlockFinished():
                self._finish(event)
            case Warned(message):
                self.print_once(f"note: {message}")  # the run's warnings are listed at its end, grouped
            case Finished(_, files, exports):
                self.plain(f"{len(files)} files, {sum(file.bytes for file in files):,} bytes")
                for outcome in exports:
                    for line in export_lines(outcome):
                        self.keep(line)

    def _finish(self, event: BlockFinished) -> None:
        self._blocks += 1
        if event.resumed:
            self._errors += [group.error.routed for group in event.groups]
        detail = f"error so far {self._mean_error():.3%}"
        text = blocks_counted(self._blocks, event.blocks)
        name = block_name(event.block, event.stack, event.index, event.part)
        self._show(text, f"{name} · {detail}")
        how = "found finished" if event.resumed else f"{event.seconds:.1f} s"
        self.plain(" · ".join((text, name, how, detail, *self._time_left())))

    def _show(self, text: str, detail: str = "") -> None:
        forecast = (self._forecast.done, self._forecast.left) if self._forecast else None
        self.show(text, detail=detail, forecast=forecast)

    def _mean_error(self) -> float:
        return sum(self._errors) / max(1, len(self._errors))

    def _time_left(self) -> list[str]:
        return [time_left(self._forecast.left)] if self._forecast else []
