"""Jobs and artifacts can be deleted; what is kept for how long is the tenant's to say; use is counted by day.

``jobs.deleted_at``: from then on row-level security hides the job and all that belongs to it from the API, and the
keeper removes it. A function of the owner sets it, because row-level security would refuse an update that makes its
own row invisible. Triggers count what is used, so that neither a deletion nor a hundred thousand jobs change the sums.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TENANT = "current_setting('app.tenant', true)"
NOT_ANOTHERS = """
    IF coalesce(nullif(current_setting('app.tenant', true), ''), whose) <> whose THEN
        RAISE EXCEPTION 'jobs of another tenant' USING ERRCODE = 'insufficient_privilege';
    END IF;"""
DELETE_JOBS = f"""
CREATE FUNCTION delete_jobs(whose text, ids text[]) RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
BEGIN{NOT_ANOTHERS}
    RETURN QUERY
    UPDATE jobs SET deleted_at = clock_timestamp() WHERE id = ANY(ids) AND tenant = whose
        AND status IN ('succeeded', 'failed', 'cancelled') AND deleted_at IS NULL
    RETURNING id;
END
$$
"""  # noqa: S608 -- every part is ours
# One row in sixteen for each day, so that those who write at the same moment seldom wait for each other.
ADD_USE = """
CREATE FUNCTION add_use(whose text, at timestamptz, created int, succeeded int, failed int, cancelled int, bytes bigint,
    held float8, on_gpu float8) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    INSERT INTO usage_days AS before (tenant, day, shard, jobs_created, jobs_succeeded, jobs_failed, jobs_cancelled,
        bytes_added, worker_seconds, gpu_seconds)
    VALUES (whose, date_trunc('day', at, 'UTC'), pg_backend_pid() % 16, created, succeeded, failed, cancelled, bytes,
        held, on_gpu)
    ON CONFLICT (tenant, day, shard) DO UPDATE SET jobs_created = before.jobs_created + excluded.jobs_created,
        jobs_succeeded = before.jobs_succeeded + excluded.jobs_succeeded,
        jobs_failed = before.jobs_failed + excluded.jobs_failed,
        jobs_cancelled = before.jobs_cancelled + excluded.jobs_cancelled,
        bytes_added = before.bytes_added + excluded.bytes_added,
        worker_seconds = before.worker_seconds + excluded.worker_seconds,
        gpu_seconds = before.gpu_seconds + excluded.gpu_seconds
$$
"""
COUNT_JOB = """
CREATE FUNCTION count_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.finished_at IS NOT NULL THEN  -- a retry: it has not ended after all
        PERFORM add_use(OLD.tenant, OLD.finished_at, 0, -(OLD.status = 'succeeded')::int, -(OLD.status = 'failed')::int,
            -(OLD.status = 'cancelled')::int, 0, 0, 0);
    END IF;
    IF NEW.finished_at IS NOT NULL THEN
        PERFORM add_use(NEW.tenant, NEW.finished_at, 0, (NEW.status = 'succeeded')::int, (NEW.status = 'failed')::int,
            (NEW.status = 'cancelled')::int, coalesce(NEW.artifact_bytes, 0), 0, 0);
    END IF;
    RETURN NULL;
END
$$
"""
# Once for a statement: a row that one transaction updates for each of many jobs becomes slower each time.
COUNT_NEW_JOBS = """
CREATE FUNCTION count_new_jobs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM add_use(tenant, at, sum(created)::int, sum(succeeded)::int, sum(failed)::int, sum(cancelled)::int,
        sum(bytes)::bigint, 0, 0)
    FROM (
        SELECT tenant, date_trunc('day', created_at, 'UTC') AS at, 1 AS created, 0 AS succeeded, 0 AS failed,
            0 AS cancelled, 0::bigint AS bytes FROM made
        UNION ALL SELECT tenant, date_trunc('day', finished_at, 'UTC'), 0, (status = 'succeeded')::int,
            (status = 'failed')::int, (status = 'cancelled')::int, coalesce(artifact_bytes, 0)
        FROM made WHERE finished_at IS NOT NULL
    ) AS new GROUP BY tenant, at ORDER BY tenant, at;
    RETURN NULL;
END
$$
"""
COUNT_ATTEMPT = """
CREATE FUNCTION count_attempt() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    held float8 := greatest(extract(epoch FROM NEW.ended_at - NEW.started_at), 0);
BEGIN
    PERFORM add_use((SELECT tenant FROM jobs WHERE id = NEW.job_id), NEW.started_at, 0, 0, 0, 0, 0, held,
        CASE WHEN NEW.device = 'cpu' OR NEW.device IS NULL THEN 0 ELSE held END);
    RETURN NULL;
END
$$
"""
TRIGGERS = (
    "CREATE TRIGGER count_new_jobs AFTER INSERT ON jobs REFERENCING NEW TABLE AS made FOR EACH STATEMENT"
    " EXECUTE FUNCTION count_new_jobs()",
    "CREATE TRIGGER count_job AFTER UPDATE OF status ON jobs FOR EACH ROW"
    " WHEN (OLD.status <> NEW.status AND (OLD.finished_at IS NOT NULL OR NEW.finished_at IS NOT NULL))"
    " EXECUTE FUNCTION count_job()",
    "CREATE TRIGGER count_new_attempt AFTER INSERT ON attempts FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL)"
    " EXECUTE FUNCTION count_attempt()",
    "CREATE TRIGGER count_attempt AFTER UPDATE OF ended_at ON attempts FOR EACH ROW"
    " WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL) EXECUTE FUNCTION count_attempt()",
)
SO_FAR = """
INSERT INTO usage_days (tenant, day, shard, jobs_created, jobs_succeeded, jobs_failed, jobs_cancelled, bytes_added,
    worker_seconds, gpu_seconds)
SELECT tenant, date_trunc('day', at, 'UTC'), 0, sum(created), sum(succeeded), sum(failed), sum(cancelled), sum(bytes),
    sum(held), sum(on_gpu)
FROM (
    SELECT tenant, created_at AS at, 1 AS created, 0 AS succeeded, 0 AS failed, 0 AS cancelled, 0::bigint AS bytes,
        0::float8 AS held, 0::float8 AS on_gpu FROM jobs
    UNION ALL SELECT tenant, finished_at, 0, (status = 'succeeded')::int, (status = 'failed')::int,
        (status = 'cancelled')::int, coalesce(artifact_bytes, 0), 0, 0 FROM jobs WHERE finished_at IS NOT NULL
    UNION ALL SELECT tenant, attempts.started_at, 0, 0, 0, 0, 0,
        greatest(extract(epoch FROM ended_at - attempts.started_at), 0),
        CASE WHEN device = 'cpu' OR device IS NULL THEN 0
            ELSE greatest(extract(epoch FROM ended_at - attempts.started_at), 0) END
    FROM attempts JOIN jobs ON jobs.id = job_id WHERE ended_at IS NOT NULL
) AS used GROUP BY 1, 2
"""
NUMBERS = ("jobs_created", "jobs_succeeded", "jobs_failed", "jobs_cancelled", "bytes_added")
SECONDS = ("worker_seconds", "gpu_seconds")
DAYS = ("jobs_days", "events_days", "layers_days", "audit_days", "deliveries_days")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_jobs_deleted", "jobs", ["deleted_at"], postgresql_where=sa.text("deleted_at IS NOT NULL"))
    op.create_index(
        "ix_jobs_finished", "jobs", ["tenant", "finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL")
    )
    op.create_index(
        "ix_webhook_deliveries_finished",
        "webhook_deliveries",
        ["tenant", "finished_at"],
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_table(
        "usage_days",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in NUMBERS),
        *(sa.Column(name, sa.Float(), server_default="0", nullable=False) for name in SECONDS),
        sa.PrimaryKeyConstraint("tenant", "day", "shard", name=op.f("pk_usage_days")),
    )
    op.create_table(
        "retention",
        sa.Column("tenant", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=True) for name in DAYS),
        sa.Column("events_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("layers_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_retention")),
    )
    op.create_table(
        "storage_removals",
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("prefix", name=op.f("pk_storage_removals")),
    )
    for table in ("usage_days", "retention", "storage_removals"):
        op.execute(f"CREATE POLICY tenant ON {table} TO qe_api USING (tenant = {TENANT})")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute("REVOKE INSERT, UPDATE, DELETE ON usage_days FROM qe_api")
    op.execute("REVOKE UPDATE, DELETE ON storage_removals FROM qe_api")
    for statement in (ADD_USE, COUNT_JOB, COUNT_NEW_JOBS, COUNT_ATTEMPT, *TRIGGERS, SO_FAR, DELETE_JOBS):
        op.execute(statement)
    op.execute("REVOKE ALL ON FUNCTION add_use FROM PUBLIC")
    op.execute("REVOKE ALL ON FUNCTION delete_jobs FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION delete_jobs TO qe_api")
    op.execute(
        f"ALTER POLICY tenant ON jobs USING (tenant = {TENANT} AND deleted_at IS NULL) WITH CHECK (tenant = {TENANT})"
    )


def downgrade() -> None:
    op.execute(f"ALTER POLICY tenant ON jobs USING (tenant = {TENANT}) WITH CHECK (tenant = {TENANT})")
    for name in ("count_new_jobs", "count_job"):
        op.execute(f"DROP TRIGGER {name} ON jobs")
    for name in ("count_new_attempt", "count_attempt"):
        op.execute(f"DROP TRIGGER {name} ON attempts")
    for function in ("count_job", "count_new_jobs", "count_attempt", "add_use", "delete_jobs"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_table("storage_removals")
    op.drop_table("retention")
    op.drop_table("usage_days")
    op.drop_index("ix_webhook_deliveries_finished", table_name="webhook_deliveries")
    op.drop_index("ix_jobs_finished", table_name="jobs")
    op.drop_index("ix_jobs_deleted", table_name="jobs", postgresql_where=sa.text("deleted_at IS NOT NULL"))
    op.drop_column("jobs", "deleted_at")
