"""Plans: what a job would take and why it would be refused, read from headers alone.

Imports ``datasets``, ``models``, ``hub_tokens`` and what lies below them.
"""
