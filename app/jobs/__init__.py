"""Jobs: create, fork, cancel, retry, delete, list, follow.

Imports ``plans``, ``datasets`` and what lies below them.
"""
