"""The audit log, bounds of single tenants, and the bytes of each finished job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("audit", "tenant_limits")


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    newest_first = [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")]
    op.create_index("ix_audit_page", "audit", ["tenant", *newest_first], unique=False)
    op.create_index("ix_audit_object", "audit", ["tenant", "object_id"], unique=False)
    op.create_table(
        "tenant_limits",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("max_queued_jobs", sa.Integer(), nullable=True),
        sa.Column("max_running_jobs", sa.Integer(), nullable=True),
        sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tenant_limits")),
    )
    op.add_column("jobs", sa.Column("artifact_bytes", sa.BigInteger(), nullable=True))
    op.execute(
        "UPDATE jobs SET artifact_bytes = (SELECT sum(bytes) FROM artifacts WHERE job_id = jobs.id)"
        " WHERE status = 'succeeded'"
    )
    op.create_index(
        "ix_jobs_stored", "jobs", ["tenant", "artifact_bytes"], postgresql_where=sa.text("artifact_bytes IS NOT NULL")
    )
    for table in TABLES:
        op.execute(f"CREATE POLICY tenant ON {table} TO qe_api USING (tenant = current_setting('app.tenant', true))")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    # What was done stays written, and nobody sets bounds for themselves, whatever the API's code may do.
    op.execute("REVOKE UPDATE, DELETE ON audit FROM qe_api")
    op.execute("REVOKE INSERT, UPDATE, DELETE ON tenant_limits FROM qe_api")


def downgrade() -> None:
    op.drop_index("ix_jobs_stored", table_name="jobs", postgresql_where=sa.text("artifact_bytes IS NOT NULL"))
    op.drop_column("jobs", "artifact_bytes")
    for table in reversed(TABLES):
        op.drop_table(table)
