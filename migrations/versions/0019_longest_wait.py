"""A job may say how long it may wait for a worker; one that waited longer fails without an attempt.

The trigger lets ``queued`` become ``failed``. Keepers of before never do that: such jobs wait on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

BEFORE = """('queued', 'running'), ('queued', 'cancelled'), ('running', 'succeeded'), ('running', 'failed'),
        ('running', 'cancelling'), ('running', 'queued'), ('cancelling', 'cancelled'), ('cancelling', 'failed'),
        ('failed', 'queued'), ('cancelled', 'queued')"""


def guard(transitions: str) -> str:
    return f"""
CREATE OR REPLACE FUNCTION guard_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN ({transitions}) THEN
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
    END IF;
    IF NEW.status = 'running' AND OLD.status = 'queued' AND NEW.spec_version > 1
        AND NEW.spec_version > coalesce(nullif(current_setting('qe.spec_version', true), '')::integer, 1) THEN
        RAISE EXCEPTION 'job %: worker % is too old for version % of the spec', OLD.id, NEW.worker, NEW.spec_version
            USING ERRCODE = 'check_violation', CONSTRAINT = 'spec_is_understood', TABLE = 'jobs',
                  HINT = 'Upgrade this worker.';
    END IF;
    RETURN NEW;
END
$$
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("max_wait_s", sa.Integer(), nullable=True))
    op.create_index(
        "ix_jobs_max_wait",
        "jobs",
        ["id"],
        postgresql_where=sa.text("status = 'queued' AND max_wait_s IS NOT NULL"),
    )
    op.execute(guard(f"{BEFORE}, ('queued', 'failed')"))


def downgrade() -> None:
    op.execute(guard(BEFORE))
    op.drop_index("ix_jobs_max_wait", table_name="jobs")
    op.drop_column("jobs", "max_wait_s")
