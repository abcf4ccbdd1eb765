"""The read-only Hugging Face Hub protocol over finished jobs.

Imports ``artifacts``, ``jobs`` and what lies below them.
"""
