"""Comparisons: several schemes and methods on one model and dataset, a job each.

Imports ``jobs`` and what lies below it.
"""
