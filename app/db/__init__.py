"""The way to PostgreSQL: engine, row-level security of a tenant, several statements in one round trip.

Imports ``core`` alone.
"""
