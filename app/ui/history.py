"""Sentences about a job: its attempts, its events, its blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.jobs.schemas import AttemptView, EventView
from app.system.schemas import WorkerView
from app.ui.formats import duration, percent, plural
from core.contract.events import EventType
from core.ledger.states import AttemptOutcome
from quant_experts.planning.alike import and_more, kind_of
from quant_experts.planning.block_names import block_name


def attempts(views: Sequence[AttemptView]) -> list[str]:
    """One sentence per attempt: its worker, its first block, and why it ended."""
    sentences, reach = [], 0
    for one in views:
        began = max(one.resumed_from_block or 0, reach)
        reach = max(reach, (one.resumed_from_block or 0) + one.blocks_done, began + one.blocks_done)
        start = f"resumed at block {began} on {one.worker}" if began else f"began on {one.worker}"
        sentences.append(f"{start[0].upper()}{start[1:]}; {_end(one, reach)}.")
    return sentences


def _end(attempt: AttemptView, reach: int) -> str:
    place = f"at block {reach}"
    new = f"{plural(attempt.blocks_done, 'new block')}"
    match attempt.outcome:
        case None:
            return f"at work, {new} so far"
        case AttemptOutcome.SUCCEEDED:
            return f"finished, {new}"
        case AttemptOutcome.CANCELLED:
            return f"stopped on request {place}"
        case AttemptOutcome.HANDED_BACK:
            return f"handed back {place}, the worker was asked to stop"
        case AttemptOutcome.LEASE_EXPIRED:
            return f"worker lost {place}"
        case AttemptOutcome.RUNNER_DIED:
            return f"the computing process died {place}"
        case AttemptOutcome.FAILED:
            reason = (attempt.error or {}).get("message") or (attempt.error or {}).get("code") or "no reason given"
            return f"failed {place}: {reason}"


def queue(workers: Sequence[WorkerView]) -> str:
    """A phrase about the workers, for a queued job."""
    alive = [worker for worker in workers if worker.alive]
    busy = sum(worker.busy for worker in alive)
    if not alive:
        return "no worker is alive: it waits until one starts"
    if busy < len(alive):
        return f"{len(alive) - busy} of {plural(len(alive), 'worker')} idle"
    return "the only worker is busy" if busy == 1 else f"all {busy} workers are busy"


FIXED = {
    EventType.CREATED: "Created",
    EventType.CANCEL_REQUESTED: "Asked to stop",
    EventType.RETRIED: "Queued again",
    EventType.CANCELLED: "Cancelled",
}
"""Events whose sentence does not depend on their data."""


def event(view: EventView) -> str:
    data = view.data
    match view.type:
        case EventType.STARTED:
            first = data.get("resumed_from_block")
            where = f", from block {first}" if first else ""
            return f"Attempt {data.get('attempt')} started on {data.get('worker')}{where}"
        case EventType.PHASE:
            return str(data.get("phase", "")).capitalize()
        case EventType.BLOCK:
            return _block_done(data)
        case EventType.WARNING:
            return f"Warning: {data.get('message')}"
        case EventType.REQUEUED:
            return f"Waits again: {data.get('reason')}"
        case EventType.SUCCEEDED:
            return "Succeeded" + (f", {data['verdict']}" if data.get("verdict") else "")
        case EventType.FAILED:
            return f"Failed: {(data.get('error') or {}).get('message', 'no reason given')}"
        case EventType.PUSHED:
            return f"Pushed to {data.get('to')}"
        case EventType.PUSH_FAILED:
            return f"Could not be pushed to {data.get('to')}: {data.get('error')}"
    return FIXED[view.type]


def _block_done(data: Mapping[str, Any]) -> str:
    error = (data.get("error") or {}).get("routed")
    suffix = f", error {percent(error)}" if error is not None else ""
    place = (data.get("stack"), data.get("index"), data.get("part"))
    name = "" if place[0] is None else f", {block_name(data['block'], *place)},"
    return f"Block {data.get('block')}{name} done in {duration(data.get('seconds'))}{suffix}"


def one_of_a_kind(events: Sequence[EventView]) -> list[EventView]:
    """The events, with one warning for each group of similar ones, and their number."""
    kinds = Counter(_kind(one) for one in events)
    first: dict[str, EventView] = {}
    for one in events:
        message = and_more(str(one.data.get("message")), kinds[_kind(one)]) if one.type == EventType.WARNING else None
        first.setdefault(_kind(one), one if message is None else one.model_copy(update={"data": {"message": message}}))
    return list(first.values())


def _kind(one: EventView) -> str:
    return kind_of(str(one.data.get("message"))) if one.type == EventType.WARNING else str(one.seq)


FILTERS: dict[str, Callable[..., str]] = {"event": event, "block_name": block_name}
