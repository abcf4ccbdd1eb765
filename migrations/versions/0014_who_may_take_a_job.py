"""Which worker may take a job: one that understands its spec, and not the one that has just failed it.

``jobs.spec_version`` is 1 for every job of old code, and old workers, which say nothing, understand 1. The trigger
refuses a claim of anything newer by a worker that does not say that it understands it: old code, whose claim does not
look, fails to claim instead of failing the job. All columns have constant defaults, so no table is rewritten.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TRANSITIONS = """('queued', 'running'), ('queued', 'cancelled'), ('running', 'succeeded'), ('running', 'failed'),
        ('running', 'cancelling'), ('running', 'queued'), ('cancelling', 'cancelled'), ('cancelling', 'failed'),
        ('failed', 'queued'), ('cancelled', 'queued')"""
UNDERSTOOD = """
    IF NEW.status = 'running' AND OLD.status = 'queued' AND NEW.spec_version > 1
        AND NEW.spec_version > coalesce(nullif(current_setting('qe.spec_version', true), '')::integer, 1) THEN
        RAISE EXCEPTION 'job %: worker % is too old for version % of the spec', OLD.id, NEW.worker, NEW.spec_version
            USING ERRCODE = 'check_violation', CONSTRAINT = 'spec_is_understood', TABLE = 'jobs',
                  HINT = 'Upgrade this worker.';
    END IF;"""


def guard(more: str) -> str:
    return f"""
CREATE OR REPLACE FUNCTION guard_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN ({TRANSITIONS}) THEN
        RAISE EXCEPTION 'job %: no way from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'legal_transition', TABLE = 'jobs';
    END IF;
    IF NEW.attempt < OLD.attempt THEN
        RAISE EXCEPTION 'job %: attempt % is a fencing token and cannot become %', OLD.id, OLD.attempt, NEW.attempt
            USING ERRCODE = 'check_violation', CONSTRAINT = 'attempt_grows', TABLE = 'jobs';
    END IF;
    IF NEW.spec <> OLD.spec THEN
        RAISE EXCEPTION 'job %: the spec of a job never changes', OLD.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'spec_is_fixed', TABLE = 'jobs';
    END IF;{more}
    RETURN NEW;
END
$$
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("spec_version", sa.Integer(), server_default="1", nullable=False))
    op.add_column("jobs", sa.Column("avoid", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False))
    op.add_column("jobs", sa.Column("waiting", postgresql.JSONB(), nullable=True))
    op.add_column("workers", sa.Column("spec_version", sa.Integer(), server_default="1", nullable=False))
    op.add_column("workers", sa.Column("state", sa.Text(), server_default="ready", nullable=False))
    op.add_column("workers", sa.Column("state_reason", sa.Text(), nullable=True))
    op.execute(guard(UNDERSTOOD))


def downgrade() -> None:
    op.execute(guard(""))
    op.drop_column("workers", "state_reason")
    op.drop_column("workers", "state")
    op.drop_column("workers", "spec_version")
    op.drop_column("jobs", "waiting")
    op.drop_column("jobs", "avoid")
    op.drop_column("jobs", "spec_version")
