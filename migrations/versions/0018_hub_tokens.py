"""A tenant's own token for the Hugging Face Hub, sealed under QE_HUB_KEY.

Workers of before do not look, and fetch with QE_HUB_TOKEN; upgrade them before tenants keep tokens.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

TENANT = "current_setting('app.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "hub_tokens",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_hub_tokens")),
    )
    op.execute(f"CREATE POLICY tenant ON hub_tokens TO qe_api USING (tenant = {TENANT})")
    op.execute("ALTER TABLE hub_tokens ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    op.drop_table("hub_tokens")
