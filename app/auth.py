"""Who is calling, and what they may do.

A key is ``qe_`` and 256 random bits, shown once. Stored is its HMAC under the service's secret, so that a copy of the
database opens nothing. The bootstrap key comes from the environment, has every scope and is not stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import func, or_, select, update

from app.contract.secret import service_secret
from app.contract.tables import ApiKey
from app.database import Sessions, lookup
from app.settings import Settings

DEFAULT_TENANT = "default"
BOOTSTRAP = "bootstrap"
MIN_SECRET = 32
LAST_USED_EVERY = timedelta(minutes=1)


class Scope(StrEnum):
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    AUDIT_READ = "audit:read"
    USAGE_READ = "usage:read"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    WORKERS_READ = "workers:read"
    KEYS_ADMIN = "keys:admin"


@dataclass(frozen=True)
class Caller:
    key_id: str
    tenant: str
    scopes: frozenset[str]

    @property
    def is_bootstrap(self) -> bool:
        return self.key_id == BOOTSTRAP


@dataclass(frozen=True)
class Actor:
    """Who did something, and in which request."""

    tenant: str
    key_id: str
    request_id: str


@dataclass(frozen=True)
class Keyring:
    """Digests API keys and signs cursors under one secret."""

    secret: bytes
    bootstrap_digest: str | None

    def digest(self, key: str) -> str:
        return hmac.new(self.secret, b"api-key\0" + key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def sign(self, payload: bytes) -> bytes:
        return hmac.new(self.secret, b"cursor\0" + payload, hashlib.sha256).digest()[:16]


def new_api_key() -> str:
    return "qe_" + secrets.token_urlsafe(32)


def load_keyring(settings: Settings) -> Keyring:
    """Raises ValueError when a key or secret is too short to be safe."""
    secret = service_secret(settings)
    for name, value in (("QE_SECRET", secret), ("QE_API_KEY", settings.api_key)):
        if value is not None and len(value) < MIN_SECRET:
            raise ValueError(f"{name} has {len(value)} characters; at least {MIN_SECRET} random ones are needed")
    keyring = Keyring(secret=secret.encode(), bootstrap_digest=None)
    if settings.api_key is None:
        return keyring
    return Keyring(secret=keyring.secret, bootstrap_digest=keyring.digest(settings.api_key))


async def identify(sessions: Sessions, keyring: Keyring, key: str) -> Caller | None:
    """The caller that ``key`` belongs to; None when it is unknown, revoked or expired."""
    return await identify_digest(sessions, keyring, keyring.digest(key))


async def identify_digest(sessions: Sessions, keyring: Keyring, digest: str) -> Caller | None:
    """As ``identify``, for who proved before that they hold the key: the dashboard's sessions keep its digest only."""
    if keyring.bootstrap_digest is not None and hmac.compare_digest(digest, keyring.bootstrap_digest):
        return Caller(key_id=BOOTSTRAP, tenant=DEFAULT_TENANT, scopes=frozenset(Scope))
    now = func.clock_timestamp()
    alive = (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now))
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - LAST_USED_EVERY)
    async with lookup(sessions) as session:
        found = (await session.execute(select(ApiKey, stale).where(ApiKey.digest == digest, *alive))).one_or_none()
    if found is None or not hmac.compare_digest(found[0].digest, digest):
        return None
    row, is_stale = found
    if is_stale:
        async with sessions.begin() as session:
            # Skipped while another request does it: reading must not queue behind a row lock.
            free = select(ApiKey.id).where(ApiKey.id == row.id, stale).with_for_update(skip_locked=True)
            await session.execute(
                update(ApiKey)
                .where(ApiKey.id == free.scalar_subquery())
                .values(last_used_at=now)
                .execution_options(synchronize_session=False)
            )
    return Caller(key_id=row.id, tenant=row.tenant, scopes=frozenset(row.scopes))
