"""The one statement that appends a job's event and, with it, what webhooks are to be told of it.

API and worker both run it, in the transaction of the change that the event is about: an event and its deliveries are
there together or not at all. A webhook is locked (KEY SHARE) before a delivery names it: one that is being deleted
meanwhile is waited for, and then has no delivery. ``seq`` is dense because the number comes from the job's row, under
its lock. The message id is made of job and ``seq``: one event, one id, at every endpoint and on every retry.
"""

from __future__ import annotations

from core.contract.events import EventType

ANNOUNCED = (
    *(EventType.STARTED, EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED),
    *(EventType.PUSHED, EventType.PUSH_FAILED),
)
"""The events that a webhook may ask for."""
PING = "webhook.ping"

UTC = """to_char(event.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
APPEND_EVENT = f"""
WITH job AS (
    UPDATE jobs SET event_seq = event_seq + 1 WHERE id = %(job_id)s
    RETURNING id, tenant, event_seq, name, labels, model_id, scheme, method, status, attempt
), event AS (
    INSERT INTO events (job_id, seq, type, data) SELECT id, event_seq, %(type)s, %(data)s FROM job
    RETURNING job_id, seq, type, data, created_at
), told AS (
    SELECT id FROM webhooks WHERE tenant = (SELECT tenant FROM job)
        AND status = 'enabled' AND %(type)s = ANY(event_types) FOR KEY SHARE
)
INSERT INTO webhook_deliveries (id, webhook_id, tenant, message_id, event_type, payload)
SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), told.id, job.tenant,
    'evt_' || substr(job.id, 5) || '_' || event.seq, event.type,
    jsonb_build_object('type', event.type, 'timestamp', {UTC}, 'data', jsonb_build_object(
        'job', jsonb_build_object('id', job.id, 'name', job.name, 'labels', job.labels, 'model', job.model_id,
            'scheme', job.scheme, 'method', job.method, 'status', job.status, 'attempt', job.attempt),
        'seq', event.seq, 'event', event.data))
FROM event CROSS JOIN job CROSS JOIN told
"""  # noqa: S608 -- every part is ours
"""Parameters, in psycopg's style: ``job_id``, ``type``, ``data`` (JSONB). The caller has the job."""
