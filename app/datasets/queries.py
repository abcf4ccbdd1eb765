"""Reads of a tenant's datasets, and of the jobs that need one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import literal_column
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets.expiry import state_of, unusable_reason
from app.datasets.schemas import DatasetQuery
from app.db.pipeline import Transaction, columns_of
from app.db.tenancy import of_tenant, owned
from app.web import problems
from app.web.lookup import get_owned
from app.web.paging import Signer, page_of
from app.web.problems import Problem
from core.ledger.tables import Dataset, Job
from quant_experts.spec.prefixes import UPLOADED


async def get_dataset(session: AsyncSession, *, tenant: str, dataset_id: str, lock: bool = False) -> Dataset:
    """Raises Problem 404."""
    return await get_owned(session, Dataset, dataset_id, tenant=tenant, lock=lock)


async def ready_dataset(session: AsyncSession, *, tenant: str, dataset_id: str) -> Dataset | None:
    return await session.scalar(owned(Dataset, tenant).where(Dataset.id == dataset_id, Dataset.status == "ready"))


async def page_of_datasets(
    session: AsyncSession, *, tenant: str, query: DatasetQuery, signer: Signer
) -> tuple[Sequence[Dataset], str | None]:
    """Newest first, and the cursor of the next page. Raises Problem for a cursor of another listing."""
    statement = owned(Dataset, tenant)
    if query.sha256 is not None:
        statement = statement.where(Dataset.sha256 == query.sha256)
    return await page_of(session, statement, Dataset, query=query, signer=signer)


async def jobs_needing(session: AsyncSession, *, tenant: str, dataset_id: str) -> Sequence[str]:
    """Ids of at most five unfinished jobs that use the dataset. Two queries, each with a partial index: an unfinished
    job is queued or has a lease."""
    mine = owned(Job, tenant).where(Job.dataset == dataset_id).with_only_columns(Job.id)
    waiting_jobs = mine.where(Job.status == literal_column("'queued'")).limit(5)
    running_jobs = mine.where(Job.lease_until.is_not(None)).limit(5)
    return [*(await session.scalars(waiting_jobs)).all(), *(await session.scalars(running_jobs)).all()][:5]


@dataclass
class _UsableDataset:
    """Columns of ``Dataset`` that decide whether it can be used."""

    id: str
    status: str
    key: str | None
    expires_at: datetime | None


async def lock_usable_dataset(transaction: Transaction, *, tenant: str, dataset: str) -> None:
    """Lock an uploaded dataset against deletion until the transaction ends. Raises Problem 422 when it does not exist
    or has expired."""
    if not dataset.startswith(UPLOADED):
        return
    statement = f"SELECT {columns_of(_UsableDataset)} FROM {of_tenant(Dataset)} AND id = %(dataset)s FOR KEY SHARE"  # noqa: S608
    rows = await transaction.rows(statement, {"tenant": tenant, "dataset": dataset}, of=_UsableDataset)
    kind = problems.DATASET_NOT_FOUND
    if not rows:
        detail = f"no dataset {dataset!r}: upload it with POST /v1/datasets"
    elif (wrong := unusable_reason(rows[0])) is not None:
        detail = wrong
        kind = problems.DATASET_EXPIRED if state_of(rows[0]) == "expired" else kind
    else:
        return
    raise Problem(kind, detail, errors=[{"pointer": "/calibration/dataset", "detail": detail}])
