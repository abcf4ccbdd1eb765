"""Shared by the commands that call a service: the client, JSON on stdout, exit codes of a finished job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from quant_experts.client import Client, JobView
from quant_experts.commands.display.printable import printable
from quant_experts.commands.exit_codes import CANCELLED, FAILED, REJECTED


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--url", metavar="URL", help="The service.  [default: QE_URL, the config file, or http://127.0.0.1:8000]"
    )(command)


def json_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def connected(url: str | None) -> Client:
    """A client. Raises MisconfiguredClient, which says what to set."""
    return Client(url)


def print_json(view: BaseModel) -> None:
    """One line, for scripts."""
    click.echo(view.model_dump_json())


def save(path: Path, text: str) -> None:
    """Write a file. The OSError of a full disk names the file too."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def missed_limits(job: JobView) -> list[str]:
    """One sentence per limit that the checkpoint misses."""
    return [str(sentence) for sentence in (job.summary or {}).get("missed") or []]


def say_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        click.echo(f"warning: {printable(warning)}", err=True)


def exit_code(job: JobView) -> int:
    """The exit code of a finished job, with a line on stderr when it is not 0."""
    if job.status == "failed":
        error = job.error
        reason = f"error {error.code}: {printable(error.message)}" if error else "error"
        again = f" (qe retry {job.id} may help)" if error and error.retryable else ""
        click.echo(f"{job.id} failed: {reason}{again}", err=True)
        return FAILED
    if job.status == "cancelled":
        click.echo(f"{job.id} was cancelled", err=True)
        return CANCELLED
    if job.verdict == "rejected":
        sentences = "; ".join(missed_limits(job)) or "its checkpoint misses a limit of accept_if"
        click.echo(f"{job.id} rejected: {printable(sentences)}; the files are there", err=True)
        return REJECTED
    return 0
