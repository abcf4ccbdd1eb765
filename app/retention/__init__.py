"""How long a tenant keeps jobs, events, blocks, audit entries and deliveries.

Imports ``audit`` and what lies below it.
"""
