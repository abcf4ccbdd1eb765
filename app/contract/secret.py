"""The service's secret, and what is sealed under it: values that must be read again, such as webhook secrets."""

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

from app.settings import Settings

PURPOSE = b"quant-experts: webhook secrets, 1"
NONCE_BYTES = 12


class BadSeal(Exception):
    """The value was sealed under another QE_SECRET or for another row, or was changed."""


class Seal:
    """AES-256-GCM under a key derived from the service's secret. A value opens only for the row it was sealed for."""

    def __init__(self, secret: str) -> None:
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE).derive(secret.encode())
        self._cipher = AESGCM(key)

    def seal(self, value: str, *, row: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, value.encode(), row.encode())).decode()

    def open(self, sealed: str, *, row: str) -> str:
        """Raises BadSeal."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], row.encode()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise BadSeal(f"what was sealed for {row} cannot be opened: has QE_SECRET changed?") from None


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
