"""Calibration datasets: upload, check, read rows, statistics, expiry, delete.

Imports ``parsing``, ``models`` and what lies below them. Every read of a row happens in a child of ``parsing``.
"""
