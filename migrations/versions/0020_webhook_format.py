"""A webhook has a format: Slack and Teams want messages of their own making.

Keepers of before send every message in the standard format; upgrade them before webhooks have another.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("webhooks", sa.Column("format", sa.String(length=16), server_default="standard", nullable=False))


def downgrade() -> None:
    op.drop_column("webhooks", "format")
