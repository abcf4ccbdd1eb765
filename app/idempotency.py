"""``Idempotency-Key``: a request that is sent twice is carried out once and answered twice.

The answer is kept for 24 hours, written in the same transaction as what the request did, under an advisory lock that
ends with it. So a crash leaves neither a half-made record nor a stuck key, and of two requests at once the second
learns to wait (409).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Header, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import problems
from app.contract.tables import IdempotencyRecord
from app.problems import Problem
from app.tenancy import owned

KEPT = timedelta(hours=24)
KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Replay:
    """What the first request was answered."""

    status_code: int
    response: Mapping[str, Any]
    location: str | None


def checked_key(key: str) -> str:
    if KEY.fullmatch(key) is None:
        errors = [{"pointer": "/header/Idempotency-Key", "detail": "1 to 255 visible ASCII characters"}]
        raise Problem(problems.INVALID_REQUEST, "Idempotency-Key: 1 to 255 visible ASCII characters", errors=errors)
    return key


def digest_of(operation: str, body: Mapping[str, Any]) -> str:
    """Equal for requests that ask for the same, whatever the order of their fields."""
    return hashlib.sha256(json.dumps([operation, body], sort_keys=True).encode()).hexdigest()


async def recall(session: AsyncSession, *, tenant: str, key: str, request_digest: str) -> Replay | None:
    """The kept answer, or None when this request is the first and must now be carried out in this transaction.

    Raises Problem: 409 while another transaction works on the same key, 422 when the key was used for another request.
    """
    lock = func.hashtextextended(f"{tenant}\x1f{key}", 0)
    if not await session.scalar(select(func.pg_try_advisory_xact_lock(lock))):
        raise Problem(
            problems.IDEMPOTENCY_IN_PROGRESS,
            "the first request with this Idempotency-Key is still being answered; repeat this one in a second",
            headers={"Retry-After": "1"},
        )
    record = await session.scalar(
        owned(IdempotencyRecord, tenant).where(
            IdempotencyRecord.key == key,
            IdempotencyRecord.created_at > func.clock_timestamp() - KEPT,
        )
    )
    if record is None or record.status_code is None:
        return None
    if record.request_digest != request_digest:
        raise Problem(
            problems.IDEMPOTENCY_MISMATCH,
            "this Idempotency-Key was sent with another body in the last 24 hours: use a new key for a new request",
        )
    return Replay(status_code=record.status_code, response=record.response or {}, location=record.location)


async def remember(session: AsyncSession, *, tenant: str, key: str, request_digest: str, answer: Replay) -> None:
    values = {
        "request_digest": request_digest,
        "status_code": answer.status_code,
        "response": dict(answer.response),
        "location": answer.location,
        "created_at": func.clock_timestamp(),
    }
    statement = insert(IdempotencyRecord).values(tenant=tenant, key=key, **values)
    # What is there already is older than 24 hours, or `recall` would have found it.
    await session.execute(statement.on_conflict_do_update(index_elements=["tenant", "key"], set_=values))


IdempotencyKey = Annotated[str | None, Header(description="Makes a repeated request safe for 24 hours.")]


@dataclass(frozen=True)
class Made:
    """What a request made, and where it is."""

    view: BaseModel
    location: str


async def answer_once(
    session: AsyncSession,
    response: Response,
    make: Callable[[], Awaitable[Made]],
    *,
    tenant: str,
    key: str | None,
    operation: str,
    body: Mapping[str, Any],
) -> Any:
    """What ``make`` makes, its place in ``response``; or the kept answer to the same request.

    Without a key every request is carried out.
    """
    digest = ""
    if key is not None:
        checked_key(key)
        digest = digest_of(operation, body)
        replay = await recall(session, tenant=tenant, key=key, request_digest=digest)
        if replay is not None:
            headers = {"Location": replay.location or "", "Idempotency-Replayed": "true"}
            return JSONResponse(dict(replay.response), status_code=replay.status_code, headers=headers)
    made = await make()
    if key is not None:
        answer = Replay(status_code=201, response=made.view.model_dump(mode="json"), location=made.location)
        await remember(session, tenant=tenant, key=key, request_digest=digest, answer=answer)
    response.headers["Location"] = made.location
    return made.view
