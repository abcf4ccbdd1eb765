"""Jobs that take over what another one computed, and comparisons of several on one model and dataset."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TENANT = "current_setting('app.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("request", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
    )
    op.create_index(
        "ix_comparisons_page",
        "comparisons",
        ["tenant", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.execute(f"CREATE POLICY tenant ON comparisons TO qe_api USING (tenant = {TENANT})")
    op.execute("ALTER TABLE comparisons ENABLE ROW LEVEL SECURITY")
    op.add_column("jobs", sa.Column("forked_from", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("comparison_id", sa.Text(), nullable=True))
    op.create_index(op.f("ix_jobs_comparison_id"), "jobs", ["comparison_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_comparison_id"), table_name="jobs")
    op.drop_column("jobs", "comparison_id")
    op.drop_column("jobs", "forked_from")
    op.drop_index("ix_comparisons_page", table_name="comparisons")
    op.drop_table("comparisons")
