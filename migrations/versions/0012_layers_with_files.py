"""An index of the blocks that still have files: the keeper asks for them every ten minutes, and walked the blocks of
all jobs that ever succeeded (0.6 s for each 20,000 jobs of 24 blocks; its statements end after 20 s).

Old code serves on with it. It is small, for files go when their job has ended, and made in one pass over the table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_layers_files", "layers", ["job_id"], postgresql_where=sa.text("files <> '[]'::jsonb"))


def downgrade() -> None:
    op.drop_index("ix_layers_files", table_name="layers", postgresql_where=sa.text("files <> '[]'::jsonb"))
