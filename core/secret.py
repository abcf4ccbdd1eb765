"""The service's secrets, and what is sealed under them: values that must be read again.

Webhook secrets and keys of tenants' buckets are sealed under QE_SECRET, tenants' hub tokens under QE_HUB_KEY: workers
open those, and QE_SECRET is not theirs.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.settings import Settings

WEBHOOKS = b"quant-experts: webhook secrets, 1"
HUB_TOKENS = b"quant-experts: hub tokens, 1"
BUCKETS = b"quant-experts: bucket keys, 1"
SETTINGS = {WEBHOOKS: "QE_SECRET", HUB_TOKENS: "QE_HUB_KEY", BUCKETS: "QE_SECRET"}
"""Purpose → the setting that holds the secret."""
HUB_KEY = b"quant-experts: QE_HUB_KEY, 1"
NONCE_BYTES = 12


class BadSeal(Exception):
    """The value was sealed under another secret or for another row, or was changed."""


class Seal:
    """AES-256-GCM under a key derived from ``secret``. A value opens only for the row it was sealed for."""

    def __init__(self, secret: str, *, purpose: bytes = WEBHOOKS) -> None:
        self._cipher = AESGCM(_derived(secret, purpose))
        self._setting = SETTINGS[purpose]

    def seal(self, value: str, *, row: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, value.encode(), row.encode())).decode()

    def open(self, sealed: str, *, row: str) -> str:
        """Raises BadSeal."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], row.encode()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise BadSeal(f"what was sealed for {row} cannot be opened: has {self._setting} changed?") from None


def hub_seal(settings: Settings) -> Seal | None:
    """What tenants' hub tokens are sealed with; None without QE_HUB_KEY: this service keeps none."""
    return Seal(settings.hub_key, purpose=HUB_TOKENS) if settings.hub_key is not None else None


def open_hub_token(sealed: str, *, tenant: str, settings: Settings) -> str:
    """A tenant's own hub token. Raises BadSeal when these settings cannot open it."""
    seal = hub_seal(settings)
    if seal is None:
        raise BadSeal(f"the hub token of {tenant} cannot be opened: QE_HUB_KEY is not set")
    return seal.open(sealed, row=tenant)


def bucket_seal(settings: Settings) -> Seal:
    """What the secrets of tenants' buckets are sealed with: API and keeper open it, and no worker."""
    return Seal(service_secret(settings), purpose=BUCKETS)


def bucket_row(tenant: str, bucket: str) -> str:
    """What a bucket's secret is sealed for. No tenant's name has a slash."""
    return f"{tenant}/{bucket}"


def open_bucket_secret(sealed: str, *, tenant: str, bucket: str, settings: Settings) -> str:
    """The secret access key of a tenant's bucket. Raises BadSeal when these settings cannot open it."""
    return bucket_seal(settings).open(sealed, row=bucket_row(tenant, bucket))


def hub_key(settings: Settings) -> str:
    """QE_HUB_KEY, or where one machine is all of the service, one derived from its secret."""
    return settings.hub_key or _derived(service_secret(settings), HUB_KEY).hex()


def _derived(secret: str, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret.encode())


def service_secret(settings: Settings) -> str:
    """QE_SECRET, or the one that is kept in QE_HOME."""
    return settings.secret if settings.secret is not None else _kept_secret(settings.resolved_home / "secret")


def _kept_secret(path: Path) -> str:
    """The secret in ``path``, made there on first use. Two processes starting at once end with the same one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".secret.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as writer:
            writer.write(secrets.token_hex(32))
        try:
            os.link(draft, path)  # fails when another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
