"""Points in time in a request: RFC 3339 with an offset, as the contract says, and not the bare numbers that pydantic
would also take for seconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator

BEGINNING = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", re.ASCII)


def _written_out(value: Any) -> Any:
    if isinstance(value, datetime):  # of our own code: JSON has none
        return value
    if isinstance(value, str) and BEGINNING.match(value):
        return value
    raise ValueError("write a date and time with an offset, for example 2026-11-25T13:00:00Z")


def _in_utc(moment: datetime) -> datetime:
    """At the ends of what a ``datetime`` can say, the last moment that it can."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return (datetime.min if moment.year == 1 else datetime.max).replace(tzinfo=UTC)


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_utc)]
