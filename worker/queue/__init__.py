"""From a wake-up to a claim: Celery, or one job at a time without it, and the record that a worker is alive.

May import every room of the worker but keeper and embedded.
"""
