"""The keys of a tenant's own buckets, stored sealed.

Imports ``audit`` and what lies below it.
"""
