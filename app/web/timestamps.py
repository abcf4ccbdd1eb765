"""Points in time in a request: RFC 3339 with an offset. Bare numbers, which pydantic reads as seconds since 1970, are
refused."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator

BEGINNING = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", re.ASCII)


def _checked_text(value: Any) -> Any:
    if isinstance(value, datetime):  # from our own code: JSON has no datetime
        return value
    if isinstance(value, str) and BEGINNING.match(value):
        return value
    raise ValueError("write a date and time with an offset, for example 2026-11-25T13:00:00Z")


def _in_utc(timestamp: datetime) -> datetime:
    """In UTC; the first or last ``datetime`` where the conversion leaves its range."""
    try:
        return timestamp.astimezone(UTC)
    except OverflowError:
        return (datetime.min if timestamp.year == 1 else datetime.max).replace(tzinfo=UTC)


Timestamp = Annotated[AwareDatetime, BeforeValidator(_checked_text), AfterValidator(_in_utc)]
