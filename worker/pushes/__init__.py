"""Pushing the files of finished jobs to repositories of the hub and to buckets. Runs in the keeper.

``queue`` is the ledger's side, ``pushing`` carries, and ``uploader`` is the child that alone sees the tenant's key.
"""
