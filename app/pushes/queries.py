"""Reads of pushes. Each raises Problem 404 for unknown ids and those of other tenants."""

from __future__ import annotations

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import find_owned, owned
from app.web import problems
from app.web.lookup import get_owned
from app.web.problems import Problem
from core.ledger.tables import Job, Push


async def get_job(session: AsyncSession, *, tenant: str, job_id: str) -> Job:
    return await get_owned(session, Job, job_id, tenant=tenant)


async def get_push(session: AsyncSession, *, tenant: str, job_id: str, push_id: str, lock: bool = False) -> Push:
    await get_job(session, tenant=tenant, job_id=job_id)
    push = await find_owned(session, Push, push_id, tenant=tenant, lock=lock)
    if push is None or push.job_id != job_id:
        raise Problem(problems.NOT_FOUND, f"job {job_id!r} has no push {push_id!r}")
    return push


def pushes_of(tenant: str, job_id: str) -> Select[Push]:
    return owned(Push, tenant).where(Push.job_id == job_id)
