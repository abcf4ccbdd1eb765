"""Pushes of finished jobs to repositories of the hub and to buckets; the keeper carries them.

Imports ``audit`` and what lies below it; ``jobs`` imports it, to make pushes with a job.
"""
