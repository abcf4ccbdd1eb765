"""An index of each tenant's waiting jobs: whether one more may wait is asked at every creation, and the answer walked
the waiting jobs of all tenants.

Old code serves on with it. It is small, for it holds what waits, and made in one pass over the table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_queued", "jobs", ["tenant"], postgresql_where=sa.text("status = 'queued'"))


def downgrade() -> None:
    op.drop_index("ix_jobs_queued", table_name="jobs", postgresql_where=sa.text("status = 'queued'"))
