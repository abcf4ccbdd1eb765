"""The ledger: every table of the service, in one room, because API and worker both stand on it.

Times are ``timestamptz`` and come from the database's clock. A job is *leased* while a worker holds it; the number of
the attempt is the fencing token that every write of that worker carries.
"""

from __future__ import annotations

from core.ledger.tables.base import Base
from core.ledger.tables.jobs import (
    Artifact,
    Attempt,
    Comparison,
    FinishedBlock,
    Job,
    JobEvent,
    JobLabel,
    Plan,
    TenantTurn,
    Worker,
)
from core.ledger.tables.pushes import Bucket, Push
from core.ledger.tables.tenants import (
    ApiKey,
    AuditEntry,
    Dataset,
    HubToken,
    IdempotencyRecord,
    Retention,
    ServiceSecret,
    StorageRemoval,
    TenantLimits,
    UsageDay,
)
from core.ledger.tables.webhooks import (
    Webhook,
    WebhookAttempt,
    WebhookDelivery,
)

__all__ = [
    "ApiKey",
    "Artifact",
    "Attempt",
    "AuditEntry",
    "Base",
    "Bucket",
    "Comparison",
    "Dataset",
    "FinishedBlock",
    "HubToken",
    "IdempotencyRecord",
    "Job",
    "JobEvent",
    "JobLabel",
    "Plan",
    "Push",
    "Retention",
    "ServiceSecret",
    "StorageRemoval",
    "TenantLimits",
    "TenantTurn",
    "UsageDay",
    "Webhook",
    "WebhookAttempt",
    "WebhookDelivery",
    "Worker",
]
