"""API keys of a tenant: create, rotate, revoke, list.

Imports ``audit`` and what lies below it.
"""
