"""The keys of a tenant's buckets. Their secrets are stored sealed, and opened only by the keeper that pushes."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from app.access.quotas import lock_tenant
from app.audit.service import Action, note
from app.buckets.schemas import BucketList, BucketView, NewBucket
from app.db.tenancy import owned
from app.web import problems
from app.web.problems import Problem
from core.contract.webhook_url import BadUrl, read_url
from core.ledger.tables import Bucket
from core.secret import bucket_row, bucket_seal
from core.settings import Settings

MOST = 50
"""Buckets of one tenant."""


async def list_buckets(session: AsyncSession, *, tenant: str) -> BucketList:
    rows = await session.scalars(owned(Bucket, tenant).order_by(Bucket.name))
    return BucketList(data=[BucketView.of(row) for row in rows])


async def store_bucket(
    session: AsyncSession, *, tenant: str, name: str, new: NewBucket, settings: Settings
) -> BucketView:
    """Set or replace the key. Raises Problem: 409 beyond the number that a tenant may have, 422 for an address that is
    refused."""
    if new.endpoint_url is not None:
        _check_endpoint(new.endpoint_url, settings)
    await lock_tenant(session, tenant)
    rows = {row.name: row for row in await session.scalars(owned(Bucket, tenant))}
    if name not in rows and len(rows) >= MOST:
        raise Problem(problems.TOO_MANY_BUCKETS, f"at most {MOST}: delete one")
    row = rows.get(name) or Bucket(tenant=tenant, name=name)
    session.add(row)
    row.sealed = bucket_seal(settings).seal(new.secret_access_key, row=bucket_row(tenant, name))
    row.access_key_id, row.endpoint_url = new.access_key_id, new.endpoint_url
    row.region, row.path_style, row.set_at = new.region, new.path_style, datetime.now(UTC)
    await note(session, Action.BUCKET_SET, name, endpoint_url=new.endpoint_url)
    await session.flush()
    return BucketView.of(row)


async def delete_bucket(session: AsyncSession, *, tenant: str, name: str) -> None:
    """Forget the key. Pushes that have not ended fail. Raises Problem 404."""
    await lock_tenant(session, tenant)
    row = await session.scalar(owned(Bucket, tenant).where(Bucket.name == name.replace("\0", "")))
    if row is None:
        raise Problem(problems.NOT_FOUND, f"no key for bucket {name!r}")
    await session.delete(row)
    await note(session, Action.BUCKET_DELETED, name)
    await session.flush()


def _check_endpoint(url: str, settings: Settings) -> None:
    """The same addresses as a webhook's. The keeper judges again each address to which it connects."""
    allowed = settings.push_allow_private
    try:
        target = read_url(url, allow_http=allowed, allow_private=allowed)
        if target.path != "/":
            raise BadUrl("a host, without path or query")
    except BadUrl as error:
        raise Problem(
            problems.ENDPOINT_REFUSED, f"/endpoint_url: {error}",
            errors=[{"pointer": "/endpoint_url", "detail": str(error)}],
        ) from None  # fmt: skip
