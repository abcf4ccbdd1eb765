"""Whose rows a query may see. Every query of a tenant's table starts here, so that none can forget the filter."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Select, select

from app.contract.tables import ApiKey, Dataset, Job

Owned = TypeVar("Owned", Job, Dataset, ApiKey)


def owned(table: type[Owned], tenant: str) -> Select[Owned]:
    return select(table).where(table.tenant == tenant)
