"""The way to PostgreSQL: the engine, the tenant's row-level security, several statements in one round trip."""
