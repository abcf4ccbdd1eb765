"""Rows that a request names."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import OwnedRow, find_owned
from app.web import problems
from app.web.problems import Problem


async def get_owned(
    session: AsyncSession, table: type[OwnedRow], row_id: str, *, tenant: str, lock: bool = False
) -> OwnedRow:
    """Raises Problem 404 for a row that does not exist or is another tenant's: the two look the same."""
    row = await find_owned(session, table, row_id, tenant=tenant, lock=lock)
    if row is None:
        raise Problem(problems.NOT_FOUND, f"no {table.__name__.lower()} {row_id!r}")
    return row
