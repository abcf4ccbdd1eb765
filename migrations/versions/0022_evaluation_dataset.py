"""The dataset that a job is evaluated on, so that it stays while an unfinished job needs it.

The trigger that fills ``jobs.dataset`` fills this column too. Jobs of before have no evaluation.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

EVALUATED = "NEW.evaluation_dataset := NEW.spec->'evaluation'->>'dataset';"


def new_job(more: str) -> str:
    return f"""
CREATE OR REPLACE FUNCTION new_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
BEGIN
    NEW.dataset := NEW.spec->'calibration'->>'dataset';
    {more}
    INSERT INTO tenant_turns (tenant) SELECT NEW.tenant
        WHERE NOT EXISTS (SELECT FROM tenant_turns WHERE tenant = NEW.tenant) ON CONFLICT DO NOTHING;
    RETURN NEW;
END
$$
"""  # noqa: S608 -- every part is ours


def upgrade() -> None:
    op.add_column("jobs", sa.Column("evaluation_dataset", sa.Text(), nullable=True))
    for name, where in (("queued", "status = 'queued'"), ("held", "lease_until IS NOT NULL")):
        op.create_index(
            f"ix_jobs_evaluated_{name}",
            "jobs",
            ["tenant", "evaluation_dataset"],
            postgresql_where=sa.text(f"evaluation_dataset IS NOT NULL AND {where}"),
        )
    op.execute(new_job(EVALUATED))


def downgrade() -> None:
    op.execute(new_job(""))
    for name in ("held", "queued"):
        op.drop_index(f"ix_jobs_evaluated_{name}", table_name="jobs")
    op.drop_column("jobs", "evaluation_dataset")
