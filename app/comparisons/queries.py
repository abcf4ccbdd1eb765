"""Reads of comparisons and of their jobs."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import owned
from app.web.lookup import get_owned
from core.ledger.tables import Comparison, Job


async def get_comparison(session: AsyncSession, *, tenant: str, comparison_id: str, lock: bool = False) -> Comparison:
    """Raises Problem 404."""
    return await get_owned(session, Comparison, comparison_id, tenant=tenant, lock=lock)


async def jobs_of(session: AsyncSession, *, tenant: str, comparison_id: str) -> list[Job]:
    """In the order of the candidates: ids are in the order in which they were made."""
    statement = owned(Job, tenant).where(Job.comparison_id == comparison_id).order_by(Job.id)
    return list((await session.scalars(statement)).all())
