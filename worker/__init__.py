"""The processes that do the work: supervisor and runner of a job, the keeper, and the service on one machine.

Imports ``core``, and the library only where a job runs.
"""
