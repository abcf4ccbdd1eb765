"""``/v1/buckets``: the keys of a tenant's own buckets, to which the files of jobs are pushed."""

from __future__ import annotations

from fastapi import APIRouter

from app.buckets import service
from app.buckets.schemas import BucketList, BucketName, BucketView, NewBucket
from app.deps import KeysAdmin, ServiceDep, SessionDep
from app.web import problems
from app.web.problems import documented

router = APIRouter(prefix="/v1/buckets", tags=["keys"])


@router.get("", responses=documented())
async def list_buckets(caller: KeysAdmin, session: SessionDep) -> BucketList:
    """The buckets that the tenant has a key for, by name. Their secrets are never shown."""
    return await service.list_buckets(session, tenant=caller.tenant)


@router.put(
    "/{bucket}",
    responses=documented(
        problems.TOO_MANY_BUCKETS,
        problems.ENDPOINT_REFUSED,
        problems.MALFORMED_REQUEST,
        problems.BODY_TOO_LARGE,
    ),
)
async def put(
    bucket: BucketName, new: NewBucket, caller: KeysAdmin, session: SessionDep, deps: ServiceDep
) -> BucketView:
    """Set or replace the key of a bucket. Jobs can then be pushed to `s3://{bucket}/…`."""
    return await service.store_bucket(session, tenant=caller.tenant, name=bucket, new=new, settings=deps.settings)


@router.delete("/{bucket}", status_code=204, responses=documented(problems.NOT_FOUND))
async def delete(bucket: str, caller: KeysAdmin, session: SessionDep) -> None:
    """Forget the key of a bucket. What was pushed stays there."""
    await service.delete_bucket(session, tenant=caller.tenant, name=bucket)
