"""Filters of the templates: numbers, sizes and times for people."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from quant_experts.planning.number_text import MISSING as NONE
from quant_experts.planning.number_text import number as figure
from quant_experts.planning.number_text import percent as percent
from quant_experts.planning.number_text import size_text

STEPS = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))


def ago(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < 0:  # rounded up: an expiry that was just set to seven days shows seven days
        return f"in {duration(math.ceil(-seconds / 60) * 60 if seconds < -60 else max(10, -seconds))}"
    return "just now" if seconds < 10 else f"{duration(seconds)} ago"


def soon(moment: datetime) -> str:
    """Time until a future event; ``now`` when it is due."""
    return ago(moment) if moment > datetime.now(UTC) else "now"


def day_and_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%-d %B, %H:%M UTC")


def duration(seconds: float | None) -> str:
    """The largest unit, with the next one where that is useful: ``2 minutes``, ``1 hour 20 minutes``."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} seconds" if seconds > 0 else "0 seconds"
    for i, (size, name) in enumerate(STEPS):
        if seconds >= size:
            whole = int(seconds // size)
            rest = "" if i == len(STEPS) - 1 else plural(int(seconds % size // STEPS[i + 1][0]), STEPS[i + 1][1])
            fine = whole < 10 and rest and not rest.startswith("0") and name != "minute"
            return f"{plural(whole, name)} {rest}" if fine else plural(whole, name)
    return NONE


def bytes_(number: int | None) -> str:
    return NONE if number is None else size_text(number)


def count(number: int) -> str:
    return f"{number:,}"


def status(value: str) -> str:
    return {"cancelling": "stopping"}.get(value, value)


def short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def short_id(value: str) -> str:
    """The prefix and the last characters of an id: the random end of a uuid7."""
    prefix, _, rest = value.partition("_")
    return f"{prefix}_…{rest[-8:]}" if len(rest) > 12 else value


def pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def plural(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


FILTERS: dict[str, Callable[..., str]] = {
    "ago": ago,
    "soon": soon,
    "day_and_time": day_and_time,
    "duration": duration,
    "bytes": bytes_,
    "figure": figure,
    "count": count,
    "percent": percent,
    "status": status,
    "short_id": short_id,
    "pretty": pretty,
}
