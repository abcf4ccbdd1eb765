"""Who calls, and what they may do.

A key is ``qe_`` and 256 random bits, shown once. The database stores its HMAC under the service's secret, so a copy of
the database gives no access. The bootstrap key comes from the environment, has every scope and is not stored.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import func, or_, select, update

from app.db.engine import Sessions
from app.db.pipeline import read_across_tenants
from core.ledger.tables import ApiKey
from core.secret import service_secret
from core.settings import Settings

DEFAULT_TENANT = "default"
BOOTSTRAP = "bootstrap"
OPENS = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())"
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
    PUSHES_WRITE = "pushes:write"
    WORKERS_READ = "workers:read"
    KEYS_ADMIN = "keys:admin"


EXPLAINED: Mapping[Scope, str] = {
    Scope.JOBS_READ: "see jobs, comparisons, events, reports and files; download checkpoints, also through the hub",
    Scope.JOBS_WRITE: "plan, make, cancel, retry, fork and delete jobs and comparisons; delete their files",
    Scope.DATASETS_READ: "see datasets, their rows and statistics",
    Scope.DATASETS_WRITE: "upload datasets, change and delete them",
    Scope.AUDIT_READ: "see who changed what",
    Scope.USAGE_READ: "see what was used, what the limits are, and how long jobs are kept",
    Scope.WEBHOOKS_READ: "see webhooks and their deliveries",
    Scope.WEBHOOKS_WRITE: "make, change, try and delete webhooks",
    Scope.PUSHES_WRITE: "push the files of jobs to repositories and buckets with the keys of the tenant; cancel pushes",
    Scope.WORKERS_READ: "see the workers and what they do",
    Scope.KEYS_ADMIN: "make, rotate and revoke keys with no more scopes than its own; set the hub token,"
    " keys of buckets, and retention",
}
"""What a key with the scope may do."""


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
    """The key that acts, and the request."""

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
    keyring = Keyring(secret=service_secret(settings).encode(), bootstrap_digest=None)
    if settings.api_key is None:
        return keyring
    return Keyring(secret=keyring.secret, bootstrap_digest=keyring.digest(settings.api_key))


async def identify(sessions: Sessions, keyring: Keyring, key: str) -> Caller | None:
    """The caller with this key; None when the key is unknown, revoked or expired."""
    return await identify_digest(sessions, keyring, keyring.digest(key))


async def identify_digest(sessions: Sessions, keyring: Keyring, digest: str) -> Caller | None:
    """As ``identify``, by the digest of a key: sessions of the dashboard store only that."""
    if keyring.bootstrap_digest is not None and hmac.compare_digest(digest, keyring.bootstrap_digest):
        return Caller(key_id=BOOTSTRAP, tenant=DEFAULT_TENANT, scopes=frozenset(Scope))
    statement = f"""
        SELECT id, tenant, scopes, digest,
            last_used_at IS NULL OR last_used_at < clock_timestamp() - %(often)s AS stale
        FROM api_keys WHERE digest = %(digest)s AND {OPENS}
    """  # noqa: S608 -- every part is ours
    rows = await read_across_tenants(sessions, statement, {"digest": digest, "often": LAST_USED_EVERY}, of=_Key)
    if not rows or not hmac.compare_digest(rows[0].digest, digest):
        return None
    key = rows[0]
    if key.stale:
        await _touch(sessions, key.id)
    return Caller(key_id=key.id, tenant=key.tenant, scopes=frozenset(key.scopes))


async def is_valid(sessions: Sessions, caller: Caller) -> bool:
    """Whether the key of the caller is still valid. Raises psycopg.Error."""
    if caller.is_bootstrap:
        return True
    statement = f"SELECT id FROM api_keys WHERE id = %(id)s AND {OPENS}"  # noqa: S608 -- every part is ours
    return bool(await read_across_tenants(sessions, statement, {"id": caller.key_id}, of=_Id))


@dataclass(frozen=True)
class _Id:
    id: str


@dataclass(frozen=True)
class _Key:
    id: str
    tenant: str
    scopes: list[str]
    digest: str
    stale: bool


async def _touch(sessions: Sessions, key_id: str) -> None:
    """Set ``last_used_at``, unless another request is doing so: a read must not wait for a lock."""
    now = func.clock_timestamp()
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - LAST_USED_EVERY)
    free = select(ApiKey.id).where(ApiKey.id == key_id, stale).with_for_update(skip_locked=True)
    async with sessions.begin() as session:
        await session.execute(
            update(ApiKey)
            .where(ApiKey.id == free.scalar_subquery())
            .values(last_used_at=now)
            .execution_options(synchronize_session=False)
        )
