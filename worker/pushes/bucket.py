"""A folder of a bucket as a target. Each object carries the SHA-256 of its bytes, by which it is known again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError

from core.contract.destination import Prefix
from core.storage.s3 import REFUSED, TRANSFER, error_code, open_client
from worker.pushes.refusal import Refused

SHA256 = "sha256"
"""Name of the object's metadata (``x-amz-meta-sha256``)."""


class BucketTarget:
    """``order``: ``access`` (``access_key_id``, ``secret``), ``bucket``, ``prefix``, ``endpoint_url``, ``region``,
    ``path_style``."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._prefix = Prefix(str(order["bucket"]), str(order["prefix"]))
        options = {"addressing_style": "path"} if order["path_style"] else {}
        options |= {"region": order["region"]} if order["region"] else {}
        self._client = open_client(
            options,
            order["endpoint_url"],
            aws_access_key_id=order["access"]["access_key_id"],
            aws_secret_access_key=order["access"]["secret"],
        )

    def prepare(self) -> None:
        """A bucket has nothing to prepare, and the key may be one that cannot list it."""

    def has(self, file: Mapping[str, Any]) -> bool:
        try:
            head = self._client.head_object(Bucket=self._prefix.bucket, Key=self._prefix.key(file["name"]))
        except ClientError as error:
            # Who may not list a bucket gets 403 for an object that is not there. The upload will tell.
            if error_code(error) in ("404", "403", "NoSuchKey", "NotFound"):
                return False
            raise
        metadata = {name.lower(): value for name, value in head["Metadata"].items()}  # some stores write them their way
        return bool(head["ContentLength"] == file["bytes"] and metadata.get(SHA256) == file["sha256"])

    def put(self, file: Mapping[str, Any], path: Path) -> None:
        extra = {"Metadata": {SHA256: file["sha256"]}, "ContentType": file["media_type"]}
        key = self._prefix.key(file["name"])
        self._client.upload_file(str(path), self._prefix.bucket, key, ExtraArgs=extra, Config=TRANSFER)
        path.unlink()

    def finish(self) -> dict[str, Any]:
        return {"url": f"s3://{self._prefix.bucket}/{self._prefix.prefix}".rstrip("/")}

    def explain(self, error: Exception) -> Exception:
        where = f"bucket {self._prefix.bucket!r}"
        if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
            error = error.__context__
        if isinstance(error, ClientError):
            code = error_code(error)
            kind = Refused if code in REFUSED else RuntimeError
            return kind(f"{where}: the store answered {code}")
        return RuntimeError(f"{where}: the store could not be reached ({type(error).__name__})")
