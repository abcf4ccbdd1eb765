"""The database of jobs: tables, states, every transition of a job as a named statement, and the outbox of events.

Holds no connection and runs nothing. May import ``core.contract``.
"""
