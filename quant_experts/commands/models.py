"""How a model is named on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import click

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""What names a model of the hub or of a service."""


def check_is_of_a_service(model: str, *, instead: str = "") -> None:
    """Raises UsageError for a local path. ``instead``: advice for a directory."""
    if ID.fullmatch(model):
        return
    advice = "name it as local/NAME below the service's model root"
    if Path(model).is_dir():
        raise click.UsageError(
            f"--model {model} is a directory of this machine, which a service does not see: {instead}{advice}"
        )
    raise click.UsageError(f"--model {model!r} is not an id: write OWNER/NAME as on the hub, or {advice}")
