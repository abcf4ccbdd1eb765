"""Uploads of large datasets in parts.

Imports ``datasets`` and what lies below it.
"""
