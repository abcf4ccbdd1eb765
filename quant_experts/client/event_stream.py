"""A parser of a job's event stream, with the state for reconnects: no event is lost or repeated."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from quant_experts.client.errors import ApiError, ConnectionFailed
from quant_experts.client.retries import RetryPolicy, transient
from quant_experts.client.views.jobs import TERMINAL, EventView

END_OF_LINE = re.compile(rb"\r\n|\n|\r")
LONGEST_EVENT = 4 * 1024 * 1024


class EventStream:
    """The events of one job over any number of connections (HTML standard, section 9.2)."""

    def __init__(self, *, after: int, patience: float, policy: RetryPolicy) -> None:
        self.last = after
        """Number of the last event."""
        self.ended = False
        """The job's terminal event was seen and the service closed the stream after it."""
        self._patience = patience
        self._policy = policy
        self._buffer = b""
        self._data: list[bytes] = []
        self._terminal = False
        self._delay = 1.0
        self._failures = 0
        self._last_event_at = time.monotonic()

    def headers(self) -> dict[str, str]:
        """Headers of the next connection. The incomplete event of the previous one is dropped."""
        self._buffer, self._data = b"", []
        return {"Accept": "text/event-stream", "Cache-Control": "no-store", "Last-Event-ID": str(self.last)}

    def feed(self, chunk: bytes) -> Iterator[EventView]:
        """The events that ``chunk`` completes, without those seen before."""
        self._last_event_at, self._failures = time.monotonic(), 0
        # A carriage return at the end may be the first half of CRLF.
        lines = END_OF_LINE.split(self._buffer + chunk)
        self._buffer = lines.pop()
        if self._buffer == b"" and chunk.endswith(b"\r") and lines:
            self._buffer = lines.pop() + b"\r"
        if len(self._buffer) > LONGEST_EVENT:
            raise ConnectionFailed("the stream of events has a line that does not end")
        for line in lines:
            event = self._line(line)
            if event is not None:
                yield event

    def closed(self) -> None:
        """The service closed the stream. After a terminal event that is the end."""
        self.ended = self._terminal

    def nothing_left(self) -> None:
        """The service answered 204: there are no events after ``last``."""
        self.ended = True

    def pause(self, failure: Exception | None) -> float:
        """Seconds until the next connection.

        Raises ``failure`` when a reconnect cannot help, ConnectionFailed when the service was silent for too long.
        """
        if isinstance(failure, ApiError) and not transient(failure):
            raise failure
        silent = time.monotonic() - self._last_event_at
        if silent > self._patience:
            raise ConnectionFailed(
                f"no answer from the service for {silent:.0f} s (after event {self.last}): {failure or 'it hangs up'}"
            ) from failure
        self._failures += 1
        if self._failures == 1:
            return min(self._delay, self._policy.longest)
        return max(0.05, self._policy.backoff(self._failures))

    def _line(self, line: bytes) -> EventView | None:
        if not line:
            data, self._data = b"\n".join(self._data), []
            return self._event(data) if data else None
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"retry" and value.isdigit():
            self._delay = int(value[:6]) / 1000
        return None

    def _event(self, data: bytes) -> EventView | None:
        event = EventView.model_validate_json(data)
        if event.seq <= self.last:
            return None
        self.last = event.seq
        self._terminal = event.type in TERMINAL
        return event
