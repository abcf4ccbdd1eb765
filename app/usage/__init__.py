"""What a tenant used, what it stores, and its limits.

Imports ``access`` and what lies below it.
"""
