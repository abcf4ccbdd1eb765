"""Figures, times and what happened to a job, as people say it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from app import sizes
from app.contract.events import EventType
from app.contract.states import AttemptOutcome
from app.jobs.schemas import AttemptView, EventView

STEPS = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))
NONE = "–"


def ago(moment: datetime | None) -> str:
    if moment is None:
        return "never"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < 0:  # rounded up: what was set to seven days a moment ago is seven days away
        return f"in {duration(math.ceil(-seconds / 60) * 60 if seconds < -60 else max(10, -seconds))}"
    return "just now" if seconds < 10 else f"{duration(seconds)} ago"


def soon(moment: datetime) -> str:
    """Of something that is to happen: what is due already happens any moment."""
    return ago(moment) if moment > datetime.now(UTC) else "now"


def day_and_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%-d %B, %H:%M UTC")


def duration(seconds: float | None) -> str:
    """The largest unit, and the next one where it still tells something: ``2 minutes``, ``1 hour 20 minutes``."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} seconds" if seconds > 0 else "0 seconds"
    for i, (size, name) in enumerate(STEPS):
        if seconds >= size:
            whole = int(seconds // size)
            rest = "" if i == len(STEPS) - 1 else _plural(int(seconds % size // STEPS[i + 1][0]), STEPS[i + 1][1])
            fine = whole < 10 and rest and not rest.startswith("0") and name != "minute"
            return f"{_plural(whole, name)} {rest}" if fine else _plural(whole, name)
    return NONE


def bytes_(number: int | None) -> str:
    return NONE if number is None else sizes.said(number)


def figure(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}g}"


def count(number: int) -> str:
    return f"{number:,}"


def percent(share: float | None, digits: int = 3) -> str:
    return NONE if share is None else f"{100 * share:.{digits}g} %"


def status(value: str) -> str:
    return {"cancelling": "stopping"}.get(value, value)


def attempts(held: Sequence[AttemptView]) -> list[str]:
    """One sentence per attempt: who ran it, where it began, why it ended."""
    said, done = [], 0
    for one in held:
        began = max(one.resumed_from_block or 0, done)
        done = max(done, (one.resumed_from_block or 0) + one.blocks_done, began + one.blocks_done)
        start = f"resumed at block {began} on {one.worker}" if began else f"began on {one.worker}"
        said.append(f"{start[0].upper()}{start[1:]}; {_end(one, done)}.")
    return said


def _end(attempt: AttemptView, done: int) -> str:
    reached = f"at block {done}"
    new = f"{_plural(attempt.blocks_done, 'new block')}"
    match attempt.outcome:
        case None:
            return f"at work, {new} so far"
        case AttemptOutcome.SUCCEEDED:
            return f"finished, {new}"
        case AttemptOutcome.CANCELLED:
            return f"stopped on request {reached}"
        case AttemptOutcome.HANDED_BACK:
            return f"handed back {reached}, the worker was asked to stop"
        case AttemptOutcome.LEASE_EXPIRED:
            return f"worker lost {reached}"
        case AttemptOutcome.RUNNER_DIED:
            return f"the computing process died {reached}"
        case AttemptOutcome.FAILED:
            reason = (attempt.error or {}).get("message") or (attempt.error or {}).get("code") or "no reason given"
            return f"failed {reached}: {reason}"


def block_name(block: int, stack: str | None = None, index: int | None = None, part: str | None = None) -> str:
    """``block 3``, or ``vision block 3`` and ``vision merger`` where the model has several stacks."""
    if stack is None:
        return f"block {block}"
    if index is None:
        return f"{stack} {part}" if part else f"{stack}, behind its blocks"
    return f"{stack} block {index}"


def event(happened: EventView) -> str:
    data = happened.data
    match happened.type:
        case EventType.CREATED:
            return "Created"
        case EventType.STARTED:
            resumed = data.get("resumed_from_block")
            where = f", from block {resumed}" if resumed else ""
            return f"Attempt {data.get('attempt')} started on {data.get('worker')}{where}"
        case EventType.PHASE:
            return f"{str(data.get('phase', '')).capitalize()}"
        case EventType.BLOCK:
            error = (data.get("error") or {}).get("routed")
            left = f", error {percent(error)}" if error is not None else ""
            place = (data.get("stack"), data.get("index"), data.get("part"))
            name = "" if place[0] is None else f", {block_name(data['block'], *place)},"
            return f"Block {data.get('block')}{name} done in {duration(data.get('seconds'))}{left}"
        case EventType.WARNING:
            return f"Warning: {data.get('message')}"
        case EventType.REQUEUED:
            return f"Waits again: {data.get('reason')}"
        case EventType.CANCEL_REQUESTED:
            return "Asked to stop"
        case EventType.RETRIED:
            return "Queued again"
        case EventType.SUCCEEDED:
            return "Succeeded" + (f", {data['verdict']}" if data.get("verdict") else "")
        case EventType.FAILED:
            return f"Failed: {(data.get('error') or {}).get('message', 'no reason given')}"
        case EventType.CANCELLED:
            return "Cancelled"


def short_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def short_id(value: str) -> str:
    """An id shortened to what tells two apart: the random end of a uuid7."""
    prefix, _, rest = value.partition("_")
    return f"{prefix}_…{rest[-8:]}" if len(rest) > 12 else value


def pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _plural(number: int, name: str) -> str:
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
    "event": event,
    "block_name": block_name,
    "short_id": short_id,
    "pretty": pretty,
}
