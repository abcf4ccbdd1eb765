"""Until when a dataset can be used, and what it is after that.

Expired is what its time says, from that moment on. The keeper removes the bytes a little later, when no unfinished job
needs them, and leaves the row for a while, so that who still names it learns why it is gone.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from app.web import problems
from app.web.problems import Problem
from core.settings import Settings

State = Literal["ready", "expired", "invalid"]
LONGEST = timedelta(days=36_525)


class Usable(Protocol):
    """What decides whether a dataset can be used."""

    @property
    def id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def key(self) -> str | None: ...
    @property
    def expires_at(self) -> datetime | None: ...


def state_of(dataset: Usable) -> State:
    if dataset.expires_at is not None and dataset.expires_at <= datetime.now(UTC):
        return "expired"
    return "ready" if dataset.status == "ready" and dataset.key is not None else "invalid"


def what_is_wrong(dataset: Usable) -> str | None:
    """Why no new job can have it, and what to do; None when it can."""
    match state_of(dataset):
        case "ready":
            return None
        case "expired":
            assert dataset.expires_at is not None
            return f"dataset {dataset.id} expired at {dataset.expires_at:%Y-%m-%dT%H:%M:%SZ}: upload the rows again"
        case "invalid":
            return f"the rows of dataset {dataset.id} are not there: upload them again"


def end_of_new(wanted: datetime | None, settings: Settings) -> datetime | None:
    """When a dataset made now expires: as its owner says, else as the service's operator does. Raises Problem 422."""
    if wanted is not None:
        return still_to_come(wanted)
    return None if settings.dataset_ttl is None else datetime.now(UTC) + timedelta(seconds=settings.dataset_ttl)


def still_to_come(moment: datetime) -> datetime:
    """Raises Problem 422. The database knows years that we cannot read back."""
    if not timedelta() < moment - datetime.now(UTC) < LONGEST:
        detail = f"{moment.isoformat()} is over, or more than a hundred years away: name a time to come"
        raise Problem(problems.INVALID_REQUEST, detail, errors=[{"pointer": "/expires_at", "detail": detail}])
    return moment
