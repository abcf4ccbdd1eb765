"""Dates on the command line, in UTC without an offset."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click


class Moment(click.ParamType[datetime]):
    """``2026-11-01`` or ``2026-11-01T12:00``, with or without an offset."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a date: write 2026-11-01 or 2026-11-01T12:00", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def in_days(days: float) -> datetime:
    """The time ``days`` from now. Raises UsageError beyond the calendar."""
    try:
        return datetime.now(UTC) + timedelta(days=days)
    except OverflowError as error:
        raise click.UsageError(f"--expires-in {days:g}: there is no such date") from error
