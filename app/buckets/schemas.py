"""What clients send and see of the keys of a tenant's buckets. The secret is never shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from app.web.schemas import OfRow, Strict
from core.contract import patterns
from core.contract.webhook_url import MOST_CHARACTERS

BucketName = Annotated[str, StringConstraints(pattern=patterns.BUCKET)]


class NewBucket(Strict):
    """A key that may put objects into the bucket; one that may also read them sends nothing twice."""

    access_key_id: Annotated[str, StringConstraints(pattern=patterns.ACCESS_KEY)] = Field(
        examples=["AKIAIOSFODNN7EXAMPLE"]
    )
    secret_access_key: Annotated[str, StringConstraints(pattern=patterns.ACCESS_KEY)] = Field(
        repr=False, json_schema_extra={"writeOnly": True}
    )
    endpoint_url: Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)] | None = Field(
        default=None, description="https://…, reachable on the internet; Amazon's without it."
    )
    region: Annotated[str, StringConstraints(pattern=patterns.REGION)] | None = None
    path_style: bool = Field(default=False, description="The bucket's name in the path, and not in the host.")


class NamedBucket(NewBucket):
    """The same with the bucket's name, for a form."""

    bucket: BucketName


class BucketView(OfRow):
    """A bucket to which the tenant can push."""

    name: str = Field(examples=["models-of-the-team"])
    endpoint_url: str | None
    region: str | None
    path_style: bool
    access_key_id: str
    set_at: datetime


class BucketList(BaseModel):
    data: list[BucketView]
