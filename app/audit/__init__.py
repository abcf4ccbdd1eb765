"""The audit log: every service writes its entry with ``note`` in the transaction of the act.

Imports ``deps`` and what lies below it.
"""
