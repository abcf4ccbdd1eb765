"""The index of labels goes: behind row-level security no query can use it (ADR 0021), and every write paid for it.

Old code serves on without it. Dropping takes the table for a moment only; the migration waits for that as for any other
change, two seconds at a time.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_jobs_labels", table_name="jobs", postgresql_using="gin")


def downgrade() -> None:
    op.create_index("ix_jobs_labels", "jobs", ["labels"], unique=False, postgresql_using="gin")
