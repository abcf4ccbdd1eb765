"""Tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from quant_experts.commands.display.printable import printable

PIPED_WIDTH = 160
GAP = 2
"""Columns between two columns."""
LONGEST_WORD = 12
"""Words up to this length are never broken."""


def stdout_console() -> Console:
    """A console as wide as the terminal, or 160 columns without one. FORCE_COLOR does not make a file a terminal."""
    console = Console(highlight=False, markup=False, emoji=False, force_terminal=sys.stdout.isatty())
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def print_rows(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """A table on stdout. The first column and those of ``whole`` never break. Where the terminal is too narrow even for
    single words, the lines are longer than the terminal."""
    console = stdout_console()
    lines = [list(titles), *([printable(cell) for cell in row] for row in rows)]
    columns = list(zip(*lines, strict=True))
    natural = [max(map(cell_len, column)) for column in columns]
    words = [max(cell_len(word) for cell in column for word in cell.split()) for column in columns]
    least = [
        width if number == 0 or title in whole else min(word, LONGEST_WORD, width)
        for number, (title, width, word) in enumerate(zip(titles, natural, words, strict=True))
    ]
    widths = _fitted(natural, least, console.width)
    table = Table(box=None, pad_edge=False)
    for title, width in zip(titles, widths, strict=True):
        justify: Literal["left", "right"] = "right" if title in right else "left"
        table.add_column(title, width=width, overflow="fold", justify=justify)
    for row in lines[1:]:
        table.add_row(*row)
    console.width = max(console.width, _total(widths))
    console.print(table)


def _fitted(natural: list[int], least: list[int], room: int) -> list[int]:
    """Widths of columns within ``room``: the widest shrink first. ``natural`` where ``least`` does not fit."""
    if _total(least) > room:
        return natural
    widths = natural.copy()
    while _total(widths) > room:
        widest = max(
            (number for number in range(len(widths)) if widths[number] > least[number]), key=widths.__getitem__
        )
        widths[widest] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
