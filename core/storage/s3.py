"""Objects in a bucket that speaks the S3 protocol.

    s3://bucket/prefix?endpoint_url=http://objects:9000&region=eu-central-1

Credentials come from where boto3 looks for them (``AWS_ACCESS_KEY_ID`` and so on, a profile, the machine's role), never
from the URL. A large file goes in parts, each refused by the store when its SHA-256 is not the signed one, and appears
when the last one is there.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl, urlsplit

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from core.storage.protocol import ObjectMissing, Presentation, StorageUnavailable, checked

OPTIONS = {"endpoint_url", "public_endpoint_url", "region", "addressing_style"}
PART = 16 << 20
TRANSFER = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
LINK_SECONDS = 3600
MOST_DELETED = 1000
"""Keys in one DeleteObjects request."""
MISSING = {"404", "NoSuchKey", "NotFound"}
REFUSED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket"}
OUT_OF_RANGE = {"416", "InvalidRange"}


def s3_from_url(url: str) -> S3Storage:
    """Connects to nothing. Raises ValueError, naming what is wrong in the URL."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = set(options) - OPTIONS
    if not parts.hostname or parts.username is not None:
        raise ValueError("QE_STORAGE_URL: s3://bucket/prefix, without credentials: they come from AWS_* variables")
    if unknown:
        raise ValueError(
            f"QE_STORAGE_URL: unknown option {', '.join(sorted(unknown))}; {', '.join(sorted(OPTIONS))} exist"
        )
    prefix = parts.path.strip("/")
    return S3Storage(bucket=parts.netloc, prefix=checked(prefix) + "/" if prefix else "", options=options)


class S3Storage:
    """``prefix`` is empty or ends with a slash."""

    def __init__(self, *, bucket: str, prefix: str, options: dict[str, str]) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._client = open_client(options, options.get("endpoint_url"))
        # Clients outside may know the store by another name than this process; a signature covers the name.
        public = options.get("public_endpoint_url")
        self._signer = self._client if public is None else open_client(options, public)

    def put(self, key: str, source: Path) -> None:
        with _translated(key):
            self._client.upload_file(str(source), self.bucket, self._name(key), Config=TRANSFER)

    def fetch(self, key: str, target: Path) -> None:
        # What is there may be a hard link to something else; the transfer writes beside it and renames.
        with _translated(key):
            self._client.download_file(self.bucket, self._name(key), str(target), Config=TRANSFER)

    def open(self, key: str, start: int = 0) -> BinaryIO:
        byte_range = {"Range": f"bytes={start}-"} if start else {}
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key), **byte_range)
        except ClientError as error:
            if error_code(error) in OUT_OF_RANGE:
                return io.BytesIO()
            raise _translation(error, key) from None
        except BotoCoreError as error:
            raise _translation(error, key) from None
        return cast(BinaryIO, _Body(answer["Body"], key))

    def size(self, key: str) -> int:
        with _translated(key):
            return int(self._client.head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"])

    def delete(self, key: str) -> None:
        with _translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def delete_under(self, prefix: str) -> None:
        names = [self._name(key) for key in self.keys(prefix)]
        for first in range(0, len(names), MOST_DELETED):
            objects = [{"Key": name} for name in names[first : first + MOST_DELETED]]
            with _translated(prefix):
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
            if answer.get("Errors"):
                raise StorageUnavailable(errno.EIO, f"{len(answer['Errors'])} objects under {prefix} are still there")

    def keys(self, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        with _translated(prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self._name(prefix)}/" if prefix else self.prefix):
                for entry in page.get("Contents", []):
                    yield str(entry["Key"]).removeprefix(self.prefix)

    def link(self, key: str, presentation: Presentation) -> str | None:
        arguments = {
            "Bucket": self.bucket,
            "Key": self._name(key),
            "ResponseContentType": presentation.media_type,
            "ResponseContentDisposition": presentation.disposition,
        }
        return str(self._signer.generate_presigned_url("get_object", Params=arguments, ExpiresIn=LINK_SECONDS))

    def _name(self, key: str) -> str:
        return self.prefix + checked(key)


class _Body:
    """What an object's reader is asked for here: ``read``, ``close``, and to be a context."""

    def __init__(self, body: Any, key: str) -> None:
        self._body = body
        self._key = key

    def read(self, size: int = -1) -> bytes:
        with _translated(self._key):
            return bytes(self._body.read(None if size < 0 else size))

    def close(self) -> None:
        self._body.close()

    def __enter__(self) -> _Body:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_client(options: dict[str, str], endpoint: str | None, **credentials: str) -> Any:
    """``credentials``: as boto3 calls them; without any, those that it finds."""
    configuration = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=32,
        signature_version="s3v4",
        # The digest of every body is part of its signature, which each server of the protocol checks. The newer
        # checksum trailers say the same, and many servers other than Amazon's refuse them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True, "addressing_style": options.get("addressing_style", "auto")},
    )
    session = boto3.Session()  # boto3's own keeps the credentials that it saw first
    # The region of a store that has none still goes into the signature.
    region = options.get("region") or session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=configuration, **credentials)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError, S3UploadFailedError) as error:
        raise _translation(error, key) from None


def _translation(error: BaseException, key: str) -> Exception:
    if isinstance(error, S3UploadFailedError) and error.__context__ is not None:
        error = error.__context__
    if isinstance(error, ClientError) and error_code(error) in MISSING:
        return ObjectMissing(key)
    is_refusal = isinstance(error, ClientError) and error_code(error) in REFUSED
    return StorageUnavailable(errno.EACCES if is_refusal else errno.EIO, f"object store: {error} ({key})")


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
