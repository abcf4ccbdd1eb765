"""``Idempotency-Key``: a request that is sent twice is carried out once and answered twice.

The answer is stored for 24 hours. It is written in the transaction of the request, under an advisory lock that ends
with the transaction. So a crash leaves neither half a record nor a stuck key, and the second of two concurrent requests
gets 409.
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

LIFETIME = timedelta(hours=24)
SEALED = "sealed"
KEY = re.compile(r"[\x21-\x7e]{1,255}")


def checked_key(key: str) -> str:
    if KEY.fullmatch(key) is None:
        errors = [{"pointer": "/header/Idempotency-Key", "detail": "1 to 255 visible ASCII characters"}]
        raise Problem(problems.INVALID_REQUEST, "Idempotency-Key: 1 to 255 visible ASCII characters", errors=errors)
    return key


def digest_of(operation: str, body: Mapping[str, Any]) -> str:
    """Equal for requests with the same operation and fields, in whatever order."""
    return hashlib.sha256(json.dumps([operation, body], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Lock:
    mine: bool


@dataclass(frozen=True)
class _Answer:
    """The answer to the first request."""

    request_digest: str
    status_code: int
    response: dict[str, Any]
    location: str | None


LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%(name)s, 0)) AS mine"
RECALL = f"""
SELECT {columns_of(_Answer)} FROM {of_tenant(IdempotencyRecord)}
    AND key = %(key)s AND created_at > clock_timestamp() - %(lifetime)s AND status_code IS NOT NULL
"""  # noqa: S608 -- every part is ours
# A row that conflicts is older than 24 hours: RECALL would have found a younger one.
STORE = """
INSERT INTO idempotency (tenant, key, request_digest, status_code, response, location)
VALUES (%(tenant)s, %(key)s, %(request_digest)s, %(status_code)s, %(response)s, %(location)s)
ON CONFLICT (tenant, key) DO UPDATE SET request_digest = excluded.request_digest, location = excluded.location,
    status_code = excluded.status_code, response = excluded.response, created_at = excluded.created_at
"""


IdempotencyKey = Annotated[str | None, Header(description="Makes a repeated request safe for 24 hours.")]


@dataclass(frozen=True)
class Created:
    """What a request made. ``location``: where it is, where that is not the path of the request."""

    view: BaseModel
    location: str | None
    status: int = 201

    def answer(self, response: Response) -> BaseModel:
        if self.location is not None:
            response.headers["Location"] = self.location
        return self.view


@dataclass(frozen=True)
class Replay:
    """The stored answer to an earlier request with the same key."""

    stored: JSONResponse

    @property
    def location(self) -> str | None:
        return self.stored.headers.get("Location")

    def answer(self, response: Response) -> JSONResponse:
        return self.stored


Outcome = Created | Replay


def new_id_of(outcome: Outcome) -> str:
    """The id of what the request made, or had made before."""
    assert outcome.location is not None
    return outcome.location.rpartition("/")[2]


@dataclass(frozen=True)
class Idempotency:
    """Carries out a request with a key once. A request without a key is carried out each time."""

    tenant: str
    key: str | None
    digest: str
    seal: Seal | None = None
    """Seals the stored answer, where it holds a secret that readers of the database must not see."""

    @classmethod
    def of(
        cls, tenant: str, key: str | None, operation: str, body: Mapping[str, Any], *, seal: Seal | None = None
    ) -> Idempotency:
        """Raises Problem 422 for a malformed key."""
        digest = "" if key is None else digest_of(operation, body)
        return cls(tenant, None if key is None else checked_key(key), digest, seal)

    async def replay(self, sessions: Sessions) -> Replay | None:
        """The stored answer, if there is one. Saves the work that comes before the transaction."""
        if self.key is None:
            return None
        return self._replayed(await read(sessions, RECALL, self._values, of=_Answer, tenant=self.tenant))

    async def run(self, transaction: Transaction, make: Callable[[], Awaitable[Created]]) -> Outcome:
        """Run ``make`` and store its answer in the same transaction, or return the stored answer.

        Raises Problem: 409 while another transaction works on the same key, 422 when the key was used for another
        request.
        """
        replay = await self._locked_replay(transaction)
        if replay is not None:
            return replay
        created = await make()
        await self._store(transaction, created)
        return created

    async def store(self, transaction: Transaction, created: Created) -> None:
        """For a caller that has made it already, in this transaction. Raises Problem 409 when another request with the
        key was quicker: the caller undoes what it made, and the client's next try gets the other's answer."""
        if await self._locked_replay(transaction) is not None:
            raise _in_progress()
        await self._store(transaction, created)

    async def _locked_replay(self, transaction: Transaction) -> Replay | None:
        if self.key is None:
            return None
        locks, answers = await transaction.run(
            Statement(LOCK, {"name": f"{self.tenant}\x1f{self.key}"}, _Lock),
            Statement(RECALL, self._values, _Answer),
        )
        if not locks[0].mine:
            raise _in_progress()
        return self._replayed(answers)

    async def _store(self, transaction: Transaction, created: Created) -> None:
        if self.key is None:
            return
        content = created.view.model_dump(mode="json")
        if self.seal is not None:
            content = {SEALED: self.seal.seal(json.dumps(content), row=self._row)}
        answer = {
            "request_digest": self.digest,
            "status_code": created.status,
            "response": Jsonb(content),
            "location": created.location,
        }
        await transaction.run(Statement(STORE, self._values | answer))

    @property
    def _row(self) -> str:
        return f"idempotency {self.tenant} {self.key}"

    @property
    def _values(self) -> dict[str, Any]:
        return {"tenant": self.tenant, "key": self.key, "lifetime": LIFETIME}

    def _replayed(self, answers: list[_Answer]) -> Replay | None:
        if not answers:
            return None
        first = answers[0]
        if first.request_digest != self.digest:
            raise Problem(
                problems.IDEMPOTENCY_MISMATCH,
                "this Idempotency-Key was sent to another route or with another body in the last 24 hours: "
                "use a new key for a new request",
            )
        headers = {"Idempotency-Replayed": "true"}
        headers |= {} if first.location is None else {"Location": first.location}
        content = first.response
        if self.seal is not None:
            content = json.loads(self.seal.open(content[SEALED], row=self._row))
            headers["Cache-Control"] = "no-store"
        return Replay(JSONResponse(content, status_code=first.status_code, headers=headers))


def _in_progress() -> Problem:
    return Problem(
        problems.IDEMPOTENCY_IN_PROGRESS,
        "the first request with this Idempotency-Key is still being answered; repeat this one in a second",
        headers={"Retry-After": "1"},
    )
