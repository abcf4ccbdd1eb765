"""What every route shares: problems, paging, idempotency, limits, files in ranges, telemetry.

Imports ``db`` and ``core``, and knows no noun.
"""
