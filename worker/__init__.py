"""The processes that do the work: supervisor and runner of a job, the keeper, and the service on one machine.

A wake-up reaches ``queue``, which runs ``supervisor``; it claims a job through ``ledger`` and starts ``runner``. The
``keeper`` repairs what dies. Imports ``core``, and the library only in ``runner``. Rooms import downwards only
(``pyproject.toml``, "Inside the worker").
"""
