"""Expiry of datasets.

A dataset is expired from ``expires_at`` on. The keeper removes its bytes later, when no unfinished job needs them. The
row stays for a while, so that requests with its id get an explanation.
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
    """The columns that decide whether a dataset can be used."""

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


def unusable_reason(dataset: Usable) -> str | None:
    """Why new jobs cannot use the dataset, and what to do; None when they can."""
    match state_of(dataset):
        case "ready":
            return None
        case "expired":
            assert dataset.expires_at is not None
            return f"dataset {dataset.id} expired at {dataset.expires_at:%Y-%m-%dT%H:%M:%SZ}: upload the rows again"
        case "invalid":
            return f"the rows of dataset {dataset.id} are not there: upload them again"


def expiry_of_new(expires_at: datetime | None, settings: Settings) -> datetime | None:
    """The expiry of a new dataset: its owner's, else the default of the service. Raises Problem 422."""
    if expires_at is not None:
        return checked_expiry(expires_at)
    return None if settings.dataset_ttl is None else datetime.now(UTC) + timedelta(seconds=settings.dataset_ttl)


def checked_expiry(moment: datetime) -> datetime:
    """Raises Problem 422 for a time in the past, or so late that Python could not read it back from the database."""
    if not timedelta() < moment - datetime.now(UTC) < LONGEST:
        detail = f"{moment.isoformat()} is over, or more than a hundred years away: name a time to come"
        raise Problem(problems.INVALID_REQUEST, detail, errors=[{"pointer": "/expires_at", "detail": detail}])
    return moment
