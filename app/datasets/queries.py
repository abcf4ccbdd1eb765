"""Reads of a tenant's datasets, and of the jobs that need one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
    """Ids of at most five unfinished jobs that use the dataset, to calibrate or to be evaluated on. Each query has a
    partial index: an unfinished job is queued or has a lease."""
    found: dict[str, None] = {}
    for column in (Job.dataset, Job.evaluation_dataset):
        mine = owned(Job, tenant).where(column == dataset_id).with_only_columns(Job.id)
        for unfinished in (Job.status == literal_column("'queued'"), Job.lease_until.is_not(None)):
            found |= dict.fromkeys((await session.scalars(mine.where(unfinished).limit(5))).all())
    return list(found)[:5]


@dataclass
class _UsableDataset:
    """Columns of ``Dataset`` that decide whether it can be used."""

    id: str
    status: str
    key: str | None
    expires_at: datetime | None


async def lock_usable_datasets(transaction: Transaction, *, tenant: str, spec: Mapping[str, Any]) -> None:
    """Lock the uploaded datasets that the stored ``spec`` of a job names against deletion until the transaction ends.
    Raises Problem 422 when one does not exist or has expired."""
    for part in ("calibration", "evaluation"):
        dataset = (spec.get(part) or {}).get("dataset")
        if dataset is not None:
            await _lock_usable_dataset(transaction, tenant=tenant, dataset=dataset, pointer=f"/{part}/dataset")


async def _lock_usable_dataset(transaction: Transaction, *, tenant: str, dataset: str, pointer: str) -> None:
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
    raise Problem(kind, detail, errors=[{"pointer": pointer, "detail": detail}])
