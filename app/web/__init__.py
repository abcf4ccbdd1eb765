"""What every route shares: problems, paging, idempotency, limits, telemetry."""
