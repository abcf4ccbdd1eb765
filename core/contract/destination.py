"""Where the files of a finished job can be pushed: ``hub:owner/name``, or ``s3://bucket/prefix``; and ``mlflow``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

HUB, BUCKET = "hub:", "s3://"
TRACKING = "mlflow"
"""The operator's tracking server, to which every job goes that one is set for; nobody asks for it."""


class PushStatus(StrEnum):
    """The states of a push."""

    WAITING = "waiting"
    """Its job has not succeeded yet."""
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Repository:
    """A model repository of the hub."""

    id: str


@dataclass(frozen=True)
class Prefix:
    """A folder of a bucket. ``prefix``: without slashes at its ends; empty for the bucket itself."""

    bucket: str
    prefix: str

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


@dataclass(frozen=True)
class Tracking:
    """A run on the tracking server."""


Destination = Repository | Prefix | Tracking


def destination_of(text: str) -> Destination:
    """``text`` has the pattern DESTINATION. Raises ValueError for one that has not."""
    if text.startswith(HUB):
        return Repository(text.removeprefix(HUB))
    if text.startswith(BUCKET):
        bucket, _, prefix = text.removeprefix(BUCKET).partition("/")
        return Prefix(bucket, prefix.strip("/"))
    if text == TRACKING:
        return Tracking()
    raise ValueError(f"{text!r} is no destination: write hub:owner/name or s3://bucket/prefix")
