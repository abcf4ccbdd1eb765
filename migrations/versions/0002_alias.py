"""Jobs may carry an alias, under which the Hub protocol serves the newest of them that succeeded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SERVED = sa.text("alias IS NOT NULL AND status = 'succeeded'")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("alias", sa.Text(), nullable=True))
    columns = ["tenant", "alias", sa.literal_column("finished_at DESC")]
    op.create_index("ix_jobs_alias", "jobs", columns, unique=False, postgresql_where=SERVED)


def downgrade() -> None:
    op.drop_index("ix_jobs_alias", table_name="jobs", postgresql_where=SERVED)
    op.drop_column("jobs", "alias")
