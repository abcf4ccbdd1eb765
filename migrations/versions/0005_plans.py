"""Plans: what a job would take, kept for a day; what workers have to offer; what ran an attempt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TENANT = "current_setting('app.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("spec", postgresql.JSONB(), nullable=False),
        sa.Column("resolved", postgresql.JSONB(), nullable=False),
        sa.Column("estimate", postgresql.JSONB(), nullable=False),
        sa.Column("refused", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("tenant", "digest", name=op.f("pk_plans")),
    )
    op.create_index(op.f("ix_plans_created_at"), "plans", ["created_at"], unique=False)
    op.execute(f"CREATE POLICY tenant ON plans TO qe_api USING (tenant = {TENANT})")
    op.execute("ALTER TABLE plans ENABLE ROW LEVEL SECURITY")
    op.add_column("jobs", sa.Column("plan", postgresql.JSONB(), nullable=True))
    op.add_column("attempts", sa.Column("device", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("device_memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("cores", sa.Integer(), nullable=True))


def downgrade() -> None:
    for column in ("cores", "device_memory_bytes", "memory_bytes"):
        op.drop_column("workers", column)
    op.drop_column("attempts", "device")
    op.drop_column("jobs", "plan")
    op.drop_index(op.f("ix_plans_created_at"), table_name="plans")
    op.drop_table("plans")
