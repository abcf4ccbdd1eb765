"""Who did what: one row for every act, in the act's own transaction, so that neither exists without the other."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.access.auth import Actor
from app.audit.schemas import AuditQuery, AuditView
from app.db.pipeline import Statement, transaction_of
from app.db.tenancy import act_for, owned
from app.web.paging import Page, Signer, as_page, page_of
from core.contract.ids import new_id
from core.ledger.tables import AuditEntry


class Action(StrEnum):
    """What a key can do to things. Stable: scripts match on them."""

    JOB_CREATED = "job.created"
    JOB_CANCELLED = "job.cancelled"
    JOB_RETRIED = "job.retried"
    JOB_DELETED = "job.deleted"
    ARTIFACTS_DELETED = "job.artifacts_deleted"
    RETENTION_CHANGED = "retention.changed"
    HUB_TOKEN_SET = "hub_token.set"  # noqa: S105 -- an action
    HUB_TOKEN_DELETED = "hub_token.deleted"  # noqa: S105
    BUCKET_SET = "bucket.set"
    BUCKET_DELETED = "bucket.deleted"
    PUSH_CREATED = "push.created"
    PUSH_CANCELLED = "push.cancelled"
    DATASET_CREATED = "dataset.created"
    DATASET_CHANGED = "dataset.changed"
    DATASET_DELETED = "dataset.deleted"
    COMPARISON_CREATED = "comparison.created"
    COMPARISON_CANCELLED = "comparison.cancelled"
    COMPARISON_DELETED = "comparison.deleted"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_SECRET_ROTATED = "webhook.secret_rotated"  # noqa: S105 -- an action
    WEBHOOK_DELETED = "webhook.deleted"
    WEBHOOK_PINGED = "webhook.pinged"
    WEBHOOK_REDELIVERED = "webhook.redelivered"


ACTOR = "actor"
"""Key in the ``info`` of a request's session: a function that returns the actor."""


NOTE = """
INSERT INTO audit (id, tenant, key_id, request_id, action, object_id, details)
VALUES (%(id)s, %(tenant)s, %(key_id)s, %(request_id)s, %(action)s, %(object_id)s, %(details)s)
"""


def audit_entry(
    actor: Actor, action: Action, object_id: str, details: Mapping[str, Any], *, tenant: str | None = None
) -> Statement:
    """The statement that writes an entry into the log of ``tenant``, by default the actor's."""
    values = {
        "id": new_id("aud"),
        "tenant": tenant or actor.tenant,
        "key_id": actor.key_id,
        "request_id": actor.request_id,
        "action": action.value,
        "object_id": object_id,
        "details": Jsonb(dict(details)),
    }
    return Statement(NOTE, values)


def actor_of(session: AsyncSession) -> Actor:
    actor = session.info[ACTOR]()
    assert isinstance(actor, Actor)
    return actor


async def note(
    session: AsyncSession, action: Action, object_id: str, *, owner: str | None = None, **details: Any
) -> None:
    """Who acts is known from the session: it belongs to a request.

    ``owner``: the tenant of the object, where the bootstrap key acts for another tenant. Both logs get the entry, and
    the rest of the transaction is the owner's.
    """
    actor = actor_of(session)
    elsewhere = owner is not None and owner != actor.tenant
    for tenant in (actor.tenant, owner) if elsewhere else (actor.tenant,):
        assert tenant is not None
        if elsewhere:
            await act_for(session, tenant)
            details["tenant"] = owner
        await (await transaction_of(session)).run(audit_entry(actor, action, object_id, details, tenant=tenant))


async def list_entries(session: AsyncSession, *, tenant: str, query: AuditQuery, signer: Signer) -> Page[AuditView]:
    """Newest first. Raises Problem for a cursor of another listing."""
    rows, cursor = await page_of(session, _matching(tenant, query), AuditEntry, query=query, signer=signer)
    return as_page(rows, cursor, AuditView.of)


def _matching(tenant: str, query: AuditQuery) -> Select[AuditEntry]:
    statement = owned(AuditEntry, tenant)
    if query.action is not None:
        statement = statement.where(AuditEntry.action == query.action)
    if query.object_id is not None:
        statement = statement.where(AuditEntry.object_id == query.object_id)
    if query.key_id is not None:
        statement = statement.where(AuditEntry.key_id == query.key_id)
    return statement
