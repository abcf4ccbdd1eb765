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
from psycopg.types.json import Jsonb
from pydantic import BaseModel

from app.db.engine import Sessions
from app.db.pipeline import Statement, Transaction, columns_of, read
from app.db.tenancy import of_tenant
from app.web import problems
from app.web.problems import Problem
from core.ledger.tables import IdempotencyRecord
from core.secret import Seal

KEPT = timedelta(hours=24)
SEALED = "sealed"
KEY = re.compile(r"[\x21-\x7e]{1,255}")


def checked_key(key: str) -> str:
    if KEY.fullmatch(key) is None:
        errors = [{"pointer": "/header/Idempotency-Key", "detail": "1 to 255 visible ASCII characters"}]
        raise Problem(problems.INVALID_REQUEST, "Idempotency-Key: 1 to 255 visible ASCII characters", errors=errors)
    return key


def digest_of(operation: str, body: Mapping[str, Any]) -> str:
    """Equal for requests that ask for the same, whatever the order of their fields."""
    return hashlib.sha256(json.dumps([operation, body], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Lock:
    mine: bool


@dataclass(frozen=True)
class _Answer:
    """What the first request was answered."""

    request_digest: str
    status_code: int
    response: dict[str, Any]
    location: str | None


LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%(name)s, 0)) AS mine"
RECALL = f"""
SELECT {columns_of(_Answer)} FROM {of_tenant(IdempotencyRecord)}
    AND key = %(key)s AND created_at > clock_timestamp() - %(kept)s AND status_code IS NOT NULL
"""  # noqa: S608 -- every part is ours
# What is there already is older than 24 hours, or RECALL would have found it.
REMEMBER = """
INSERT INTO idempotency (tenant, key, request_digest, status_code, response, location)
VALUES (%(tenant)s, %(key)s, %(request_digest)s, %(status_code)s, %(response)s, %(location)s)
ON CONFLICT (tenant, key) DO UPDATE SET request_digest = excluded.request_digest, location = excluded.location,
    status_code = excluded.status_code, response = excluded.response, created_at = excluded.created_at
"""


IdempotencyKey = Annotated[str | None, Header(description="Makes a repeated request safe for 24 hours.")]


@dataclass(frozen=True)
class Made:
    """What a request made, and where it is, if that is another place than before."""

    view: BaseModel
    location: str | None
    status: int = 201


@dataclass(frozen=True)
class Once:
    """A request that is carried out once, if it has a key; each time without."""

    tenant: str
    key: str | None
    digest: str
    seal: Seal | None = None
    """For an answer with a secret in it: what is kept of that opens nothing for who reads the database."""

    @classmethod
    def of(
        cls, tenant: str, key: str | None, operation: str, body: Mapping[str, Any], *, seal: Seal | None = None
    ) -> Once:
        """Raises Problem 422 for a key that is none."""
        digest = "" if key is None else digest_of(operation, body)
        return cls(tenant, None if key is None else checked_key(key), digest, seal)

    async def kept(self, sessions: Sessions) -> JSONResponse | None:
        """The answer, if it was given before: a look, for who has work to do before the transaction begins."""
        if self.key is None:
            return None
        return self._replay(await read(sessions, RECALL, self._values, of=_Answer, tenant=self.tenant))

    async def answer(
        self, transaction: Transaction, response: Response, make: Callable[[], Awaitable[Made]]
    ) -> BaseModel | JSONResponse:
        """What ``make`` makes, its place in ``response``; or the kept answer to the same request.

        Raises Problem: 409 while another transaction works on the same key, 422 when the key was used for another
        request.
        """
        replay = await self._recalled(transaction)
        if replay is not None:
            return replay
        made = await make()
        await self._remember(transaction, made)
        if made.location is not None:
            response.headers["Location"] = made.location
        return made.view

    async def remember(self, transaction: Transaction, made: Made) -> None:
        """For who has made it already, in this transaction. Raises Problem 409 when another request with the key was
        quicker: what was made is then to be undone, and the client's next try gets the other's answer."""
        if await self._recalled(transaction) is not None:
            raise _in_progress()
        await self._remember(transaction, made)

    async def _recalled(self, transaction: Transaction) -> JSONResponse | None:
        if self.key is None:
            return None
        locked, found = await transaction.run(
            Statement(LOCK, {"name": f"{self.tenant}\x1f{self.key}"}, _Lock),
            Statement(RECALL, self._values, _Answer),
        )
        if not locked[0].mine:
            raise _in_progress()
        return self._replay(found)

    async def _remember(self, transaction: Transaction, made: Made) -> None:
        if self.key is None:
            return
        said = made.view.model_dump(mode="json")
        if self.seal is not None:
            said = {SEALED: self.seal.seal(json.dumps(said), row=self._row)}
        answer = {
            "request_digest": self.digest,
            "status_code": made.status,
            "response": Jsonb(said),
            "location": made.location,
        }
        await transaction.run(Statement(REMEMBER, self._values | answer))

    @property
    def _row(self) -> str:
        return f"idempotency {self.tenant} {self.key}"

    @property
    def _values(self) -> dict[str, Any]:
        return {"tenant": self.tenant, "key": self.key, "kept": KEPT}

    def _replay(self, found: list[_Answer]) -> JSONResponse | None:
        if not found:
            return None
        first = found[0]
        if first.request_digest != self.digest:
            raise Problem(
                problems.IDEMPOTENCY_MISMATCH,
                "this Idempotency-Key was sent to another route or with another body in the last 24 hours: "
                "use a new key for a new request",
            )
        headers = {"Idempotency-Replayed": "true"}
        headers |= {} if first.location is None else {"Location": first.location}
        said = first.response
        if self.seal is not None:
            said = json.loads(self.seal.open(said[SEALED], row=self._row))
            headers["Cache-Control"] = "no-store"
        return JSONResponse(said, status_code=first.status_code, headers=headers)


def _in_progress() -> Problem:
    return Problem(
        problems.IDEMPOTENCY_IN_PROGRESS,
        "the first request with this Idempotency-Key is still being answered; repeat this one in a second",
        headers={"Retry-After": "1"},
    )
