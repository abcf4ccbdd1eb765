"""Row-level security: the API's transactions, as role ``qe_api``, see the rows of the tenant in ``app.tenant`` only.

The owner of the tables (worker, keeper, migrations) is not bound by it. The role belongs to the whole server, so a
downgrade takes its rights in this database and leaves the role.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OWN = ("jobs", "datasets", "api_keys", "idempotency")
OF_JOB = ("attempts", "layers", "events", "artifacts")

ROLE = """
DO $$
DECLARE
    kind text := CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'qe_api') THEN
            CREATE ROLE qe_api NOLOGIN;
        END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;  -- another database of this server was migrated in the same moment
    END;
    IF NOT pg_has_role(current_user, 'qe_api', kind) THEN
        EXECUTE format('GRANT qe_api TO %I', current_user);
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'user % may not create or grant the role qe_api, as which the API works', current_user
        USING ERRCODE = 'insufficient_privilege', HINT = format(
            'As an administrator run: CREATE ROLE qe_api NOLOGIN; GRANT qe_api TO %I; then migrate again.',
            current_user);
END
$$
"""
RIGHTS = """
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO qe_api', current_schema());
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO qe_api', current_schema());
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO qe_api',
                   current_schema());
    REVOKE ALL ON alembic_version FROM qe_api;
    REVOKE INSERT, UPDATE, DELETE ON workers FROM qe_api;
END
$$
"""
NO_RIGHTS = """
DO $$
BEGIN
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I REVOKE SELECT, INSERT, UPDATE, DELETE ON TABLES FROM qe_api',
                   current_schema());
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM qe_api', current_schema());
    EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM qe_api', current_schema());
END
$$
"""
TENANT = "current_setting('app.tenant', true)"


def upgrade() -> None:
    op.execute(ROLE)
    op.execute(RIGHTS)
    for table in OWN:
        op.execute(f"CREATE POLICY tenant ON {table} TO qe_api USING (tenant = {TENANT})")
    for table in OF_JOB:
        # Not EXISTS: the planner takes that for a set and reads every job of the tenant into a hash (121 ms for 200
        # events beside 100 000 jobs). A scalar is looked up by primary key for each row.
        job = f"SELECT tenant FROM jobs WHERE jobs.id = {table}.job_id"  # noqa: S608 -- names of ours
        op.execute(f"CREATE POLICY tenant ON {table} TO qe_api USING (({job}) = {TENANT})")
    for table in OWN + OF_JOB:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    for table in OWN + OF_JOB:
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        op.execute(f"DROP POLICY tenant ON {table}")
    op.execute(NO_RIGHTS)
