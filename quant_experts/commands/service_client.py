"""What the commands that speak to a service share: the client, JSON on stdout, and how a finished job ends them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import click
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from quant_experts.client import Client, JobView
from quant_experts.commands.exit_codes import CANCELLED, FAILED, REJECTED

PIPED_WIDTH = 160


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--url", metavar="URL", help="The service.  [default: QE_URL, the config file, or http://127.0.0.1:8000]"
    )(command)


def json_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def connected(url: str | None) -> Client:
    """Raises MisconfiguredClient that says what to set."""
    return Client(url)


def print_json(view: BaseModel) -> None:
    """One line, for scripts."""
    click.echo(view.model_dump_json())


def print_rows(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """A table on stdout whose first column, like those of ``whole``, never breaks; without a terminal nothing does
    before 160 columns."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        justify: Literal["left", "right"] = "right" if title in right else "left"
        table.add_column(title, no_wrap=title in (titles[0], *whole), overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table)


def exit_code(job: JobView) -> int:
    """And one line on stderr when it is not 0."""
    if job.status == "failed":
        error = job.error
        said = f"error {error.code}: {error.message}" if error else "error"
        again = f" (qe retry {job.id} may help)" if error and error.retryable else ""
        click.echo(f"{job.id} failed: {said}{again}", err=True)
        return FAILED
    if job.status == "cancelled":
        click.echo(f"{job.id} was cancelled", err=True)
        return CANCELLED
    if job.verdict == "rejected":
        click.echo(f"{job.id} rejected: its checkpoint misses a limit of accept_if; the files are there", err=True)
        return REJECTED
    return 0
