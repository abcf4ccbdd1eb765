"""The files of a finished job: list, download, archive, report, delete.

Imports ``jobs`` and what lies below it.
"""
