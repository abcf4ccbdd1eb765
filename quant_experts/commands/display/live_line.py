"""A line on stderr that changes in place while something runs. Without a terminal: one plain line per step.

It is narrower than the terminal: otherwise the ``^C`` that the terminal prints behind it would wrap, and a copy of the
line would stay.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from quant_experts.commands.display.printable import printable
from quant_experts.planning.alike import kind_of
from quant_experts.planning.number_text import size_text, unit_of

BAR, SHORTEST_BAR = 28, 8
FREE_COLUMNS = len("^C") + 1
"""Columns at the right."""
FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
EVERY = 0.1
"""Seconds of a frame."""


class LiveLine:
    """A context manager, which removes the line at its end."""

    def __init__(self, text: str) -> None:
        self.console = live_console()
        self._line = _Line(text)
        self._texts: dict[str, int] = {}
        # No redirection of other output: stdout may be a file.
        self._live = Live(
            self._line,
            console=self.console,
            transient=True,
            refresh_per_second=1 / EVERY,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()
        if more := sum(self._texts.values()) - len(self._texts):
            self.keep(f"and {more} more like {'it' if len(self._texts) == 1 else 'these'}")

    def show(self, text: str, *, detail: str = "", forecast: tuple[float, float] | None = None) -> None:
        """Set the text. ``detail``: parts between ``·``, the most important last. ``forecast``: seconds done and left;
        the line updates them itself."""
        self._line.say(printable(text), printable(detail), forecast)

    def plain(self, line: str) -> None:
        """Print a step where there is no terminal."""
        if not self.console.is_terminal:
            self.keep(line)

    def keep(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(printable(line), markup=False, soft_wrap=True)

    def print_once(self, line: str) -> None:
        """As ``keep``, but only the first of similar lines; the end prints the number of the others."""
        kind = kind_of(line)
        self._texts[kind] = self._texts.get(kind, 0) + 1
        if self._texts[kind] == 1:
            self.keep(line)


def bytes_bar() -> Progress:
    """A progress bar for bytes, with their speed; nothing without a terminal."""
    console = live_console()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR),
        _Amount(),
        _Speed(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )


def live_console() -> Console:
    """A console of stderr that updates in place only on a capable terminal, whatever FORCE_COLOR is."""
    able = sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return _WithRoom(stderr=True, highlight=False, force_terminal=able)


def clock(seconds: float) -> str:
    """``25:38``, ``1:00:00``, ``30:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def later(forecast: tuple[float, float], seconds: float) -> tuple[float, float]:
    """The forecast after ``seconds`` more."""
    spent, rest = forecast
    return spent + seconds, max(0.0, rest - seconds)


def time_left(seconds: float) -> str:
    """``about 25:38 left``."""
    return f"about {clock(seconds)} left" if seconds >= 1 else "nearly done"


class _Amount(ProgressColumn):
    """``1.5/2.0 MiB``."""

    def render(self, task: Task) -> Text:
        total = task.total
        factor, unit = unit_of(task.completed if total is None else total)
        digits = 0 if factor == 1 else 1
        whole = "?" if total is None else f"{total / factor:,.{digits}f}"
        return Text(f"{task.completed / factor:,.{digits}f}/{whole} {unit}", style="progress.download")


class _Speed(ProgressColumn):
    """``3.25 MiB/s``."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("?" if speed is None else f"{size_text(int(speed))}/s", style="progress.data.speed")


class _WithRoom(Console):
    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        width, height = super().size
        return ConsoleDimensions(max(1, width - FREE_COLUMNS), height) if self.is_terminal else super().size


class _Line:
    """Draws what fits: the bar only where there is room; the first details are left out first."""

    def __init__(self, text: str) -> None:
        self._began = time.monotonic()
        self.say(text, "", None)

    def say(self, text: str, detail: str, forecast: tuple[float, float] | None) -> None:
        self._texts = (text, detail.split(" · ") if detail else [], forecast)
        self._said_at = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        text, details, forecast = self._texts
        now = time.monotonic()
        spent, rest = later(forecast, now - self._said_at) if forecast else (0.0, 0.0)
        details = [*details, *([time_left(rest)] if forecast else [])]
        seconds = now - self._began
        frame, time_text, width = FRAMES[int(seconds / EVERY) % len(FRAMES)], clock(seconds), options.max_width
        for bar, parts in _choices(details, time_text):
            behind = "".join(f" {part}" for part in parts)
            room = width - cell_len(f"{frame} {text}{behind}") - (1 if bar else 0)
            if room >= bar:
                yield Text(f"{frame} {text}" + (" " if bar else ""), end="")
                if bar:
                    total = spent + rest if forecast else None
                    yield ProgressBar(total, spent, width=min(BAR, room), pulse=total is None)
                yield Text(behind, end="")
                return
        alone = Text(f"{frame} {text}", end="")
        alone.truncate(width, overflow="ellipsis")
        yield alone


def _choices(details: Sequence[str], time_text: str) -> Iterator[tuple[int, list[str]]]:
    """(Least columns of the bar, texts behind it), best first."""
    for left_out in range(len(details) + 1):
        parts = [" · ".join(details[left_out:])] if left_out < len(details) else []
        yield SHORTEST_BAR, [*parts, time_text]
        yield SHORTEST_BAR, parts
        yield 0, parts
