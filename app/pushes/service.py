"""Make, list and cancel pushes. ``worker.pushes`` carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Actor, Caller, Scope
from app.audit.service import Action, audit_entry, note
from app.db.pipeline import Statement, Transaction, transaction_of
from app.db.tenancy import of_tenant
from app.deps import Service
from app.pushes.queries import get_job, get_push, pushes_of
from app.pushes.schemas import NewPush, PushView
from app.web import problems
from app.web.idempotency import Created, Idempotency, Outcome
from app.web.paging import Page, PageQuery, Signer, as_page, page_of
from app.web.problems import Problem
from core.contract.destination import TRACKING, Prefix, PushStatus, Repository, destination_of
from core.contract.ids import new_id
from core.ledger.states import FINISHED, JobStatus
from core.ledger.tables import Bucket, HubToken, Job, Push
from core.settings import Settings

ACCESS = f"""
SELECT (SELECT count(*) FROM {of_tenant(Push)} AND finished_at IS NULL AND destination <> '{TRACKING}'
        AND (SELECT status FROM {of_tenant(Job)} AND id = job_id) NOT IN ('failed', 'cancelled')) AS unfinished,
    EXISTS (SELECT FROM {of_tenant(HubToken)}) AS has_hub_token,
    ARRAY(SELECT name FROM {of_tenant(Bucket)}) AS buckets
"""  # noqa: S608 -- every part is ours
"""What waits for a job that failed, and may be retried, is not on its way."""
ADD = """
INSERT INTO pushes (id, tenant, job_id, destination, export, private, if_accepted, status)
VALUES (%(id)s, %(tenant)s, %(job_id)s, %(destination)s, %(export)s, %(private)s, %(if_accepted)s, 'waiting')
ON CONFLICT (job_id, destination, export) WHERE finished_at IS NULL DO NOTHING RETURNING id
"""
"""The keeper sees within a second whether there is anything to wait for."""


@dataclass
class _Access:
    unfinished: int
    has_hub_token: bool
    buckets: list[str]


@dataclass
class _Added:
    id: str


async def create_push_once(
    session: AsyncSession, caller: Caller, actor: Actor, deps: Service, *, job_id: str, new: NewPush, key: str | None
) -> Outcome:
    """Push a job that has succeeded, or one that has not ended as soon as it has; a repeated request gets the same one.

    Raises Problem as ``add_pushes``; 404, and 409 for a job that failed or has no files any more."""
    tenant = caller.tenant
    transaction = await transaction_of(session)

    async def create() -> Created:
        job = await get_job(session, tenant=tenant, job_id=job_id)
        if job.status in FINISHED and (job.status != JobStatus.SUCCEEDED or job.artifact_bytes is None):
            what = "its files were deleted" if job.status == JobStatus.SUCCEEDED else f"it is {job.status}"
            raise Problem(problems.NOTHING_TO_PUSH, f"job {job_id}: {what}")
        exports = job.spec.get("exports") or []
        (push_id,) = await add_pushes(
            transaction, actor, job_id=job_id, new=[new], exports=exports, settings=deps.settings
        )
        return Created(
            PushView.of(await get_push(session, tenant=tenant, job_id=job_id, push_id=push_id)),
            f"/v1/jobs/{job_id}/pushes/{push_id}",
        )

    idempotency = Idempotency.of(tenant, key, f"POST /v1/jobs/{job_id}/pushes", new.model_dump(mode="json"))
    return await idempotency.run(transaction, create)


async def add_pushes(
    transaction: Transaction,
    actor: Actor,
    *,
    job_id: str,
    new: Sequence[NewPush],
    exports: Sequence[str],
    settings: Settings,
    if_accepted: bool = False,
    pointer: str = "",
) -> list[str]:
    """Add pushes of a job in the transaction that has read or made it; returns their ids. ``exports``: those of the
    job. ``pointer``: where the body has them, without the number.

    Raises Problem: 409 without a key for a destination, for one that is on its way already, and beyond the number of
    pushes that may be unfinished; 422 for an export that the job does not make.
    """
    (access,) = await transaction.rows(ACCESS, {"tenant": actor.tenant}, of=_Access)
    if access.unfinished + len(new) > settings.max_pushes:
        raise Problem(problems.TOO_MANY_PUSHES, f"at most {settings.max_pushes} pushes of a tenant may be unfinished")
    ids = []
    for number, each in enumerate(new):
        _check(each, access, exports, pointer=f"{pointer}/{number}" if pointer else "")
        values = {
            "id": new_id("push"),
            "tenant": actor.tenant,
            "job_id": job_id,
            "destination": each.to,
            "export": each.export or "",
            "private": each.private,
            "if_accepted": if_accepted,
        }
        details = {"job": job_id, "to": each.to, "private": each.private}
        entry = audit_entry(actor, Action.PUSH_CREATED, str(values["id"]), details)
        added, _ = await transaction.run(Statement(ADD, values, _Added), entry)
        if not added:
            raise Problem(problems.PUSH_IN_PROGRESS, f"job {job_id} is being pushed to {each.to} already")
        ids.append(added[0].id)
    return ids


def run_of(job_id: str, *, tenant: str) -> Statement:
    """The push of a new job to the tracking server."""
    values = {"id": new_id("push"), "tenant": tenant, "job_id": job_id, "destination": TRACKING, "export": ""}
    return Statement(ADD, {**values, "private": True, "if_accepted": False}, _Added)


def check_scope(caller: Caller) -> None:
    """Raises Problem 403 when the caller may not push."""
    if Scope.PUSHES_WRITE not in caller.scopes:
        raise Problem(problems.MISSING_SCOPE, f"this key lacks the scope {Scope.PUSHES_WRITE.value}")


async def list_pushes(
    session: AsyncSession, *, tenant: str, job_id: str, query: PageQuery, signer: Signer
) -> Page[PushView]:
    """Newest first. Raises Problem 404, and for a cursor of another listing."""
    job = await get_job(session, tenant=tenant, job_id=job_id)
    rows, cursor = await page_of(session, pushes_of(tenant, job.id), Push, query=query, signer=signer)
    return as_page(rows, cursor, PushView.of)


async def view_push(session: AsyncSession, *, tenant: str, job_id: str, push_id: str) -> PushView:
    """Raises Problem 404."""
    return PushView.of(await get_push(session, tenant=tenant, job_id=job_id, push_id=push_id))


async def cancel_push(session: AsyncSession, *, tenant: str, job_id: str, push_id: str) -> PushView:
    """End it where it stands. Idempotent. Raises Problem 404, or 409 when it has ended otherwise."""
    push = await get_push(session, tenant=tenant, job_id=job_id, push_id=push_id, lock=True)
    if push.status in (PushStatus.SUCCEEDED, PushStatus.FAILED):
        raise Problem(problems.PUSH_FINISHED, f"push {push_id} has {push.status}")
    if push.status != PushStatus.CANCELLED:
        push.status, push.error, push.due_at = PushStatus.CANCELLED.value, "cancelled", None
        push.finished_at = func.clock_timestamp()
        await note(session, Action.PUSH_CANCELLED, push_id)
        await session.flush()
        await session.refresh(push)
    return PushView.of(push)


def _check(new: NewPush, access: _Access, exports: Sequence[str], *, pointer: str) -> None:
    def refusal(kind: problems.ProblemType, field: str, detail: str) -> Problem:
        errors: list[dict[str, Any]] = [{"pointer": f"{pointer}/{field}", "detail": detail}]
        return Problem(kind, f"{pointer}/{field}: {detail}", errors=errors)

    destination = destination_of(new.to)
    if isinstance(destination, Repository):
        if not access.has_hub_token:
            detail = "the tenant has no hub token of its own: set one that may write (PUT /v1/hub-token)"
            raise refusal(problems.NO_DESTINATION_KEY, "to", detail)
    elif isinstance(destination, Prefix) and destination.bucket not in access.buckets:
        detail = f"the tenant has no key for this bucket: set one (PUT /v1/buckets/{destination.bucket})"
        raise refusal(problems.NO_DESTINATION_KEY, "to", detail)
    if new.export is not None and new.export not in exports:
        detail = f"the job makes {'these exports: ' + ', '.join(exports) if exports else 'no exports'}"
        raise refusal(problems.INVALID_REQUEST, "export", detail)
