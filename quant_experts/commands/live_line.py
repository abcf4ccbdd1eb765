"""A line on stderr that changes in place while something runs; without a terminal, one plain line per step."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

BAR = 28


class LiveLine:
    """A context manager; the line is gone when it is left."""

    def __init__(self, text: str) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task(text, total=None, detail="")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def show(self, text: str, *, done: int = 0, total: int | None = None, detail: str = "") -> None:
        """What the line says now."""
        self._progress.update(self._task, description=text, completed=done, total=total, detail=detail)

    def plain(self, line: str) -> None:
        """A step, for who sees no line that changes."""
        if not self.console.is_terminal:
            self.keep(line)

    def keep(self, line: str) -> None:
        """Something to read that stays."""
        self.console.print(line, markup=False, soft_wrap=True)


def bytes_bar() -> Progress:
    """A bar for bytes that are sent or fetched, with their speed; nothing without a terminal."""
    console = Console(stderr=True, highlight=False)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
