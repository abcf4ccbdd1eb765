"""Exit codes of ``qe``, the same for every command. ``docs/client.md`` has the table."""

from __future__ import annotations

BAD_INPUT = 1
"""The input is invalid, or the service refused the request."""
BAD_ARGUMENTS = 2
FAILED, CANCELLED = 3, 4
"""End of a job that the command waited for."""
REJECTED = 5
"""The checkpoint is complete and misses a limit of ``--accept-…``."""
UNREACHED = 6
INTERRUPTED = 130
UNREAD = 141
"""The output pipe was closed, as SIGPIPE ends a program."""

OF_A_JOB = f"""\b
Exit code:
  0    the job succeeded
  {BAD_INPUT}    the service refused the request, as for a job that does not exist
  {BAD_ARGUMENTS}    the arguments are at fault
  {FAILED}    the job failed
  {CANCELLED}    the job was cancelled
  {REJECTED}    the job succeeded, and its checkpoint misses a limit of --accept-…; the files are there
  {UNREACHED}    the service was not reached, or not heard of for ten minutes
  {INTERRUPTED}  interrupted with Ctrl-C; the job goes on
  {UNREAD}  nobody reads the output any more, as after head; the job goes on
"""
"""Exit codes for the help of a command."""
