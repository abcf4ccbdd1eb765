"""Reads of comparisons and of their jobs."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import find_owned, owned
from app.web import problems
from app.web.problems import Problem
from core.ledger.tables import Comparison, Job


async def get_comparison(session: AsyncSession, *, tenant: str, comparison_id: str, lock: bool = False) -> Comparison:
    """Raises Problem 404 for one that does not exist or is another tenant's."""
    comparison = await find_owned(session, Comparison, comparison_id, tenant=tenant, lock=lock)
    if comparison is None:
        raise Problem(problems.NOT_FOUND, f"no comparison {comparison_id!r}")
    return comparison


async def jobs_of(session: AsyncSession, *, tenant: str, comparison_id: str) -> list[Job]:
    """In the order of the candidates: ids are in the order in which they were made."""
    statement = owned(Job, tenant).where(Job.comparison_id == comparison_id).order_by(Job.id)
    return list((await session.scalars(statement)).all())
