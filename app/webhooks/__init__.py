"""Webhooks and their deliveries; the keeper sends them.

Imports ``audit`` and what lies below it.
"""
