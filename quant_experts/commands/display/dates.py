"""Points in time as tables and details show them."""

from __future__ import annotations

from datetime import datetime


def to_the_minute(timestamp: datetime) -> str:
    return timestamp.strftime("%Y-%m-%d %H:%M")


def to_the_second(timestamp: datetime | None) -> str | None:
    return None if timestamp is None else timestamp.isoformat(timespec="seconds")
