"""A job's events as lines of text, for ``tail``, ``grep`` and people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC
from typing import Any

from core.ledger.tables import JobEvent


def lines_of(events: Iterable[JobEvent]) -> str:
    """One line for each: time, number, type, and data as ``name=value``. Line breaks in values are escaped."""
    return "".join(f"{_line(event)}\n" for event in events)


def _line(event: JobEvent) -> str:
    at = event.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return " ".join([at, f"#{event.seq}", event.type, *(f"{name}={_written(event.data[name])}" for name in event.data)])


def _written(value: Any) -> str:
    """The value as JSON; a string that is one plain word has no quotation marks."""
    plain = isinstance(value, str) and value.isascii() and value.isprintable() and value and not set(value) & set(' "=')
    return value if plain else json.dumps(value, separators=(",", ":"))
