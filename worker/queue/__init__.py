"""The way from a wake-up to a claim: Celery, or one job at a time without it."""
