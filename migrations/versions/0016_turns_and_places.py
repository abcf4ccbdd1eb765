"""Whose turn it is, which worker is large enough, and indexes for what is asked often.

``tenant_turns`` has a row for each tenant that ever had a job: a claim locks the one whose turn it is, so that workers
that claim at the same moment serve different tenants. ``job_labels`` exists because row-level security keeps queries
from every index of ``jobs.labels``. Triggers fill both, so that old code serves on. Jobs of before have their labels
there too.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TENANT = "current_setting('app.tenant', true)"
NEWEST = (sa.literal_column("created_at DESC"), sa.literal_column("id DESC"))
NEW_JOB = """
CREATE FUNCTION new_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    NEW.dataset := NEW.spec->'calibration'->>'dataset';
    INSERT INTO tenant_turns (tenant) SELECT NEW.tenant
        WHERE NOT EXISTS (SELECT FROM tenant_turns WHERE tenant = NEW.tenant) ON CONFLICT DO NOTHING;
    RETURN NEW;
END
$$
"""
LABEL_JOB = """
CREATE FUNCTION label_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM job_labels WHERE job_id = NEW.id;
    INSERT INTO job_labels (tenant, key, value, created_at, job_id)
        SELECT NEW.tenant, key, value, NEW.created_at, NEW.id FROM jsonb_each_text(NEW.labels);
    RETURN NULL;
END
$$
"""
TRIGGERS = (
    "CREATE TRIGGER new_job BEFORE INSERT OR UPDATE OF tenant ON jobs FOR EACH ROW EXECUTE FUNCTION new_job()",
    "CREATE TRIGGER label_new_job AFTER INSERT ON jobs FOR EACH ROW WHEN (NEW.labels <> '{}')"
    " EXECUTE FUNCTION label_job()",
    "CREATE TRIGGER label_job AFTER UPDATE OF labels, created_at, tenant ON jobs FOR EACH ROW"
    " EXECUTE FUNCTION label_job()",
)
SO_FAR = (
    "INSERT INTO tenant_turns (tenant) SELECT DISTINCT tenant FROM jobs",
    """INSERT INTO job_labels (tenant, key, value, created_at, job_id)
        SELECT tenant, key, value, created_at, id FROM jobs, jsonb_each_text(labels)""",
    """UPDATE jobs SET dataset = spec->'calibration'->>'dataset' WHERE status = 'queued' OR lease_until IS NOT NULL""",
)
PLACE = ("needs_host_cpu", "needs_host_cuda", "needs_device", "needs_disk")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("dataset", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("device", sa.Text(), nullable=True))
    for name in PLACE:
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("free_disk_bytes", sa.BigInteger(), nullable=True))
    op.add_column("tenant_limits", sa.Column("weight", sa.Integer(), nullable=True))
    op.create_table(
        "tenant_turns",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tenant_turns")),
    )
    op.create_table(
        "job_labels",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_job_labels")),
    )
    for table in ("tenant_turns", "job_labels"):
        op.execute(f"CREATE POLICY tenant ON {table} TO qe_api USING (tenant = {TENANT})")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"REVOKE INSERT, UPDATE, DELETE ON {table} FROM qe_api")
    for statement in (NEW_JOB, LABEL_JOB, *TRIGGERS, *SO_FAR):
        op.execute(statement)
    newest = [sa.literal_column("created_at DESC"), sa.literal_column("job_id DESC")]
    op.create_index("ix_job_labels_value", "job_labels", ["tenant", "key", "value", *newest])
    op.create_index("ix_job_labels_key", "job_labels", ["tenant", "key", *newest])
    op.create_index("ix_jobs_by_status", "jobs", ["tenant", "status", *NEWEST])
    op.create_index("ix_jobs_by_model", "jobs", ["tenant", "model_id", *NEWEST])
    op.create_index("ix_jobs_by_scheme", "jobs", ["tenant", "scheme", *NEWEST])
    op.create_index(
        "ix_jobs_by_alias", "jobs", ["tenant", "alias", *NEWEST], postgresql_where=sa.text("alias IS NOT NULL")
    )
    op.create_index(
        "ix_jobs_turn",
        "jobs",
        ["tenant", sa.literal_column("priority DESC"), "created_at"],
        postgresql_where=sa.text("status = 'queued' AND waiting IS NULL"),
    )
    op.create_index("ix_jobs_waiting_since", "jobs", ["queued_at"], postgresql_where=sa.text("status = 'queued'"))
    for name, where in (("queued", "status = 'queued'"), ("held", "lease_until IS NOT NULL")):
        op.create_index(f"ix_jobs_dataset_{name}", "jobs", ["tenant", "dataset"], postgresql_where=sa.text(where))


def downgrade() -> None:
    for name in (
        "dataset_held", "dataset_queued", "waiting_since", "turn", "by_alias", "by_scheme", "by_model", "by_status"
    ):  # fmt: skip
        op.drop_index(f"ix_jobs_{name}", table_name="jobs")
    for trigger in ("label_job", "label_new_job", "new_job"):
        op.execute(f"DROP TRIGGER {trigger} ON jobs")
    op.execute("DROP FUNCTION label_job")
    op.execute("DROP FUNCTION new_job")
    op.drop_table("job_labels")
    op.drop_table("tenant_turns")
    op.drop_column("tenant_limits", "weight")
    op.drop_column("workers", "free_disk_bytes")
    for name in (*PLACE, "device", "dataset"):
        op.drop_column("jobs", name)
