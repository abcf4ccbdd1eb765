"""The service itself: health, readiness, metrics, schemes, workers, problem types.

Imports ``jobs.feed`` and what lies below it.
"""
