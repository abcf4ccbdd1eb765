"""Log lines of every process: JSON for machines, one readable line for a terminal, both with the ids that lead on.

``with log_context(job_id=…, attempt=…):`` puts the ids on every line that is logged inside, whoever logs it. Threads
start with an empty context: give them ``contextvars.copy_context().run`` as their target.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["auto", "json", "text"]
EXTRA = "fields"
"""``logger.info("…", extra={EXTRA: {"status": 200}})``: fields of this one line."""
NOISY = ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "celery.task", "celery.worker")
_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 -- replaced, never changed


@contextmanager
def log_context(**ids: Any) -> Iterator[None]:
    """Lines logged inside carry these ids, and those of the blocks around."""
    token = _about.set({**_about.get(), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {**_about.get(), **getattr(record, EXTRA, {})}


class JsonLines(logging.Formatter):
    """One object per line; an exception is a field, so that it stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Readable(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        first, *rest = super().format(record).split("\n")
        return "\n".join([f"{first}  [{ids}]" if ids else first, *rest])


class _Ours(logging.StreamHandler[TextIO]):
    """Known again by its type, so that configuring twice replaces and does not double."""


def configure_logging(log_format: LogFormat, *, stream: TextIO | None = None) -> None:
    """Everything that this process logs, the web server's and Celery's lines too, to ``stream`` (stderr)."""
    stream = stream or sys.stderr
    as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    handler = _Ours(stream)
    handler.setFormatter(JsonLines() if as_json else Readable())
    root = logging.getLogger()
    root.handlers = [handler, *(each for each in root.handlers if not isinstance(each, _Ours))]
    root.setLevel(min(root.level or logging.WARNING, logging.INFO))
    for name in NOISY:
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # Our own access log says more, and says it with the request's id.
    logging.getLogger("uvicorn.access").disabled = True
