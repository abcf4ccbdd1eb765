"""Who holds a pooled connection while a thread, a file, a hub or a child process works."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine


@contextmanager
def none_held(engine: AsyncEngine) -> Iterator[None]:
    """Fails when a request waits for a thread while it holds a connection of ``engine``."""
    held: Counter[asyncio.Task[Any] | None] = Counter()
    found: list[str] = []

    def taken(connection: Any, record: Any, proxy: Any) -> None:
        record.info["task"] = asyncio.current_task()
        held[record.info["task"]] += 1

    def given(connection: Any, record: Any) -> None:
        held[record.info.pop("task", None)] -= 1

    def watched(wait: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*arguments: Any, **named: Any) -> Any:
            if held[asyncio.current_task()] > 0:
                found.append("".join(traceback.format_stack(limit=6)[:-1]))
            return wait(*arguments, **named)

        return waiting

    event.listen(engine.sync_engine, "checkout", taken)
    event.listen(engine.sync_engine, "checkin", given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", watched(asyncio.to_thread))
        patch.setattr(anyio.to_thread, "run_sync", watched(anyio.to_thread.run_sync))
        yield
    assert not found, f"a connection is held while a thread works, {len(found)} times:\n{found[0]}"
