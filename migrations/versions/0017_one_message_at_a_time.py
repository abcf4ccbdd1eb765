"""Several keepers send one message of a webhook at a time, and to one receiver of a tenant so many a second.

Keepers of before do not look, and serve on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("webhooks", sa.Column("busy_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("webhooks", sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("webhooks", "taken_at")
    op.drop_column("webhooks", "busy_until")
