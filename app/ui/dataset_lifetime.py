"""The expiry of a dataset in a form: never, after some days, or at the end of a day."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta

from app.datasets.expiry import expiry_of_new
from app.datasets.upload import ExpiryFields
from app.web import problems
from app.web.problems import Problem
from core.settings import Settings

NAMES = ("keep", "days", "until")
FOR_EVER = {"keep": "forever", "days": "30", "until": ""}
AS_USUAL = FOR_EVER | {"keep": ""}
"""No choice: the default lifetime of the service applies."""
MOST_DAYS = 36_500
DAYS, DAY = re.compile(r"[0-9]{1,5}"), re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def values_until(expires_at: datetime | None) -> dict[str, str]:
    """The form's values for a dataset that expires then."""
    if expires_at is None:
        return FOR_EVER
    last = expires_at.astimezone(UTC) - timedelta(microseconds=1)  # midnight ends the day before
    return FOR_EVER | {"keep": "until", "until": last.date().isoformat()}


def end_of(values: Mapping[str, str]) -> datetime | None:
    """The expiry; None: never. Raises Problem 422, with the field as its pointer."""
    match values.get("keep"):
        case "forever":
            return None
        case "days":
            return _after(values.get("days", ""))
        case "until":
            return _end_of_day(values.get("until", ""))
    raise _wrong("keep", "choose how long the rows are kept")


def _end_of_upload(values: Mapping[str, str], settings: Settings) -> datetime | None:
    return end_of(values) if values.get("keep") else expiry_of_new(None, settings)


def of_an_upload(texts: dict[str, str]) -> ExpiryFields:
    """``texts`` gets the received fields, so that the page can show them again after an error."""

    def parse(values: Mapping[str, str], settings: Settings) -> datetime | None:
        texts.update({name: value.strip() for name, value in values.items()})
        return _end_of_upload(values, settings)

    return ExpiryFields(NAMES, parse)


def _after(days: str) -> datetime:
    if DAYS.fullmatch(days) is None or not 1 <= int(days) <= MOST_DAYS:
        raise _wrong("days", f"write a whole number of days, from 1 to {MOST_DAYS}")
    return datetime.now(UTC) + timedelta(days=int(days))


def _end_of_day(text: str) -> datetime:
    today = datetime.now(UTC).date()
    try:
        day = date.fromisoformat(text if DAY.fullmatch(text) else "")
    except ValueError:
        raise _wrong("until", f"write a day, for example {today + timedelta(days=30)}") from None
    if not timedelta() <= day - today <= timedelta(days=MOST_DAYS):
        raise _wrong("until", f"{day} is over, or more than a hundred years away: name a day to come")
    return datetime.combine(day, time.min, UTC) + timedelta(days=1)


def _wrong(field: str, detail: str) -> Problem:
    return Problem(problems.INVALID_REQUEST, detail, errors=[{"pointer": f"/{field}", "detail": detail}])
